//! The rules, as an operator would follow them. Each script ends a paragraph with `plan`.
//!
//! ```text
//! settings [target=3] [stabilization=10] [relaunch=false]       seconds
//! voter|learner NAME ID [witness] [primary] [steady=S] [silent=S] [dead=S]     dead: in the view
//! down NAME after=INCARNATION [held]
//! stray NAME
//! view away | joint
//! refused                                what would be done is refused, a moment before
//! plan                                   and everything is forgotten
//! ```
//!
//! A member that is not said to be silent is heard of, and has been steady for an hour.

use std::error::Error;
use std::str::FromStr;
use std::time::Duration;

use goldenscript::ArgumentConsumer;

use super::{Down, Member, Seen, Settings, plan};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const HOUR: Duration = Duration::from_secs(3_600);

struct Runner {
    seen: Seen,
}

impl Default for Runner {
    fn default() -> Self {
        let settings = Settings { target_size: 3, stabilization: Duration::from_secs(10), relaunch: true };
        let (members, down, strays, refused) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let seen = Seen { settings, view: true, primary: None, joint: false, members, down, strays, refused };
        Self { seen }
    }
}

impl Runner {
    fn member(&mut self, voter: bool, args: &mut ArgumentConsumer<'_>) -> Result<()> {
        let name = next(args)?.to_owned();
        let id = next(args)?.parse()?;
        let words: Vec<&str> = std::iter::from_fn(|| args.next_pos()).collect();
        let mut seconds = |key| Ok::<_, Box<dyn Error>>(parsed(args.take_key(key))?.map(Duration::from_secs));
        let (silent, view_dead, steady) = (seconds("silent")?, seconds("dead")?, seconds("steady")?);
        let steady = steady.or_else(|| (silent.is_none() && !words.contains(&"lagging")).then_some(HOUR));
        if words.contains(&"primary") {
            self.seen.primary = Some(id);
        }
        let witness = words.contains(&"witness");
        self.seen.members.push(Member { id, name, witness, voter, view_dead, silent, steady });
        Ok(())
    }
}

fn next<'a>(args: &mut ArgumentConsumer<'a>) -> Result<&'a str> {
    args.next_pos().ok_or_else(|| "a word is missing".into())
}

fn parsed<T: FromStr<Err: Error + 'static>>(text: Option<&str>) -> Result<Option<T>> {
    Ok(text.map(str::parse).transpose()?)
}

impl goldenscript::Runner for Runner {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &goldenscript::Context) -> Result<String> {
        let mut args = command.consume_args();
        let mut output = String::new();
        match command.name.as_str() {
            "settings" => {
                let settings = &mut self.seen.settings;
                settings.target_size = parsed(args.take_key("target"))?.unwrap_or(settings.target_size);
                settings.relaunch = parsed(args.take_key("relaunch"))?.unwrap_or(settings.relaunch);
                let seconds: Option<u64> = parsed(args.take_key("stabilization"))?;
                settings.stabilization = seconds.map_or(settings.stabilization, Duration::from_secs);
            }
            "voter" => self.member(true, &mut args)?,
            "learner" => self.member(false, &mut args)?,
            "down" => {
                let name = next(&mut args)?.to_owned();
                let incarnation = parsed(args.take_key("after"))?.ok_or("after is missing")?;
                let held = args.next_pos() == Some("held");
                self.seen.down.push(Down { name, incarnation, held });
            }
            "stray" => self.seen.strays.push(next(&mut args)?.to_owned()),
            "view" => self.seen.view = next(&mut args)? != "away",
            "refused" => {
                if let Some((change, _)) = plan(&self.seen).change {
                    self.seen.refused.push((change, "the disk is full".to_owned()));
                }
            }
            "joint" => self.seen.joint = true,
            "plan" => {
                let plan = plan(&self.seen);
                for down in &plan.launch {
                    output.push_str(&format!("launch {} after {}\n", down.name, down.incarnation));
                }
                match &plan.change {
                    Some((change, why)) => {
                        output.push_str(&format!("{}: {why}\n", self.seen.describe(change)));
                    }
                    None => output.push_str("change nothing\n"),
                }
                for wait in &plan.waits {
                    output.push_str(&format!("waits: {wait}\n"));
                }
                for note in &plan.notes {
                    output.push_str(&format!("note: {note}\n"));
                }
                *self = Self::default();
            }
            other => return Err(format!("there is no command {other}").into()),
        }
        args.reject_next()?;
        Ok(output)
    }
}

macro_rules! scripts {
    ($($name:ident),+ $(,)?) => {$(
        #[test]
        fn $name() {
            let path = concat!("src/policy/testdata/", stringify!($name));
            goldenscript::run(&mut Runner::default(), path).unwrap();
        }
    )+};
}

scripts!(dead_voters, witness, growing, launching, waiting);
