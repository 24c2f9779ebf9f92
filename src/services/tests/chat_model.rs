//! Chat against a list of messages: each device is offered each message that it may see once, in one order, whatever
//! comes and goes in between.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use quorate_storage::codec;
use quorate_storage::delta::{Command as Delta, DeltaResult, SYSTEM_SERVICE};
use quorate_storage::machine::SystemCommand;
use serde_json::Value;

use super::replicas::Replicas;
use crate::services::chat::{Command, DEFAULT_RETENTION, Reply};

const NAMES: [&str; 3] = ["ada", "bob", "cleo"];

#[derive(Debug, Clone)]
enum Step {
    Login {
        session: u64,
        name: usize,
        phone: bool,
    },
    Logout {
        session: u64,
    },
    Say {
        session: u64,
        to: Option<usize>,
    },
    /// The client of a session takes up to so many messages, and maybe marks them.
    Take {
        session: u64,
        most: u32,
        marks: bool,
    },
    Delete {
        session: u64,
        name: usize,
    },
    Forget {
        session: u64,
        phone: bool,
    },
    /// So many messages are to be kept.
    Retain(u64),
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    let session = || 1u64..6;
    let name = || 0..NAMES.len();
    prop_oneof![
        4 => (session(), name(), any::<bool>()).prop_map(|(session, name, phone)| Step::Login { session, name, phone }),
        2 => session().prop_map(|session| Step::Logout { session }),
        8 => (session(), prop::option::of(name())).prop_map(|(session, to)| Step::Say { session, to }),
        6 => (session(), 1u32..5, any::<bool>())
            .prop_map(|(session, most, marks)| Step::Take { session, most, marks }),
        1 => (session(), name()).prop_map(|(session, name)| Step::Delete { session, name }),
        1 => (session(), any::<bool>()).prop_map(|(session, phone)| Step::Forget { session, phone }),
        1 => (1u64..20).prop_map(Step::Retain),
        1 => Just(Step::Tick),
    ]
}

type Device = (usize, bool);

struct Model {
    /// From, to.
    messages: Vec<(usize, Option<usize>)>,
    /// How many messages there were when it was made.
    accounts: BTreeMap<usize, u64>,
    logins: BTreeMap<u64, Device>,
    /// What each device was given and has marked.
    marked: BTreeMap<Device, u64>,
    /// The first message that is kept, and how many are to be.
    oldest: u64,
    retention: u64,
}

impl Model {
    fn new() -> Self {
        Self {
            messages: Vec::new(),
            accounts: BTreeMap::new(),
            logins: BTreeMap::new(),
            marked: BTreeMap::new(),
            oldest: 1,
            retention: DEFAULT_RETENTION,
        }
    }

    /// Drops what is beyond the retention, `most` at once.
    fn drop_old(&mut self, most: u64) {
        let kept = self.messages.len() as u64 + 1 - self.oldest;
        self.oldest += kept.saturating_sub(self.retention).min(most);
    }

    fn device_session(&self, device: Device) -> Option<u64> {
        self.logins.iter().find(|(_, on)| **on == device).map(|(session, _)| *session)
    }

    fn visible(&self, name: usize, after: u64) -> Vec<u64> {
        let may = |(from, to): &(usize, Option<usize>)| to.is_none_or(|to| to == name || *from == name);
        let numbered = (1u64..).zip(&self.messages);
        numbered
            .filter(|(number, message)| *number > after && *number >= self.oldest && may(message))
            .map(|(number, _)| number)
            .collect()
    }
}

struct World {
    replicas: Replicas,
    model: Model,
    /// Where each session's client stands.
    cursors: BTreeMap<u64, u64>,
}

impl World {
    fn send(&mut self, session: u64, command: &Command) -> Result<Reply, String> {
        let delta = Delta { session, ..Delta::sessionless("chat", codec::encode(command)) };
        match &self.replicas.apply(0, &[delta])[0].result {
            DeltaResult::Reply(reply) => Ok(codec::decode(reply).unwrap()),
            DeltaResult::Refused(refusal) => Err(refusal.code.clone()),
            other => panic!("{other:?}"),
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Login { session, name, phone } => self.login(session, (name, phone)),
            Step::Logout { session } => {
                let found = self.send(session, &Command::Logout {});
                let known = self.model.logins.remove(&session);
                assert_eq!(found, known.map(|_| Reply::Done).ok_or("not_logged_in".to_owned()));
            }
            Step::Say { session, to } => self.say(session, to),
            Step::Take { session, most, marks } => self.take(session, most, marks),
            Step::Delete { session, name } => {
                let found =
                    self.send(session, &Command::Delete { name: NAMES[name].to_owned(), admin: false });
                let expected = match self.model.logins.get(&session) {
                    None => Err("not_logged_in"),
                    Some((own, _)) if *own != name => Err("not_yours"),
                    Some(_) => Ok(Reply::Done),
                };
                if expected.is_ok() {
                    self.model.accounts.remove(&name);
                    self.model.logins.retain(|_, (own, _)| *own != name);
                    self.model.marked.retain(|(own, _), _| *own != name);
                }
                assert_eq!(found, expected.map_err(str::to_owned));
            }
            Step::Forget { session, phone } => self.forget(session, phone),
            Step::Retain(messages) => {
                self.model.retention = messages;
                assert_eq!(self.send(0, &Command::Retain { messages }), Ok(Reply::Done));
            }
            Step::Tick => {
                let tick = Delta::sessionless(SYSTEM_SERVICE, codec::encode(&SystemCommand::Tick));
                self.replicas.apply(0, &[tick]);
                self.model.drop_old(u64::MAX);
            }
        }
    }

    fn forget(&mut self, session: u64, phone: bool) {
        let device = device_name(phone).to_owned();
        let found = self.send(session, &Command::Forget { device });
        let own = self.model.logins.get(&session).map(|(name, _)| (*name, phone));
        let expected = match own {
            None => Err("not_logged_in"),
            Some(device) if !self.model.marked.contains_key(&device) => Err("unknown_device"),
            Some(device) if self.model.device_session(device).is_some() => Err("active"),
            Some(_) => Ok(Reply::Done),
        };
        if let (Ok(_), Some(device)) = (&expected, own) {
            self.model.marked.remove(&device);
        }
        assert_eq!(found, expected.map_err(str::to_owned));
    }

    fn login(&mut self, session: u64, device: Device) {
        let on = device_name(device.1).to_owned();
        let command = Command::Login { name: NAMES[device.0].to_owned(), device: on.clone(), create: true };
        let found = self.send(session, &command);
        let model = &mut self.model;
        if model.logins.get(&session).is_some_and(|on| *on != device) {
            assert_eq!(found, Err("logged_in".to_owned()));
            return;
        }
        if model.device_session(device).is_some_and(|other| other != session) {
            assert_eq!(found, Err("active_elsewhere".to_owned()));
            return;
        }
        let newest = model.messages.len() as u64;
        let created = !model.accounts.contains_key(&device.0);
        let since = *model.accounts.entry(device.0).or_insert(newest);
        let delivered = model.marked.entry(device).or_insert(since);
        // What it has missed is told once.
        let dropped = (model.oldest - 1).saturating_sub(*delivered);
        *delivered += dropped;
        let delivered = *delivered;
        model.logins.insert(session, device);
        let name = NAMES[device.0].to_owned();
        assert_eq!(found, Ok(Reply::LoggedIn { name, device: on, created, delivered, dropped, newest }));
        self.cursors.insert(session, delivered);
    }

    fn say(&mut self, session: u64, to: Option<usize>) {
        let text = format!("{}", self.model.messages.len());
        let command = Command::Say { to: to.map(|to| NAMES[to].to_owned()), text };
        let found = self.send(session, &command).map(|reply| match reply {
            Reply::Said { number, .. } => number,
            other => panic!("{other:?}"),
        });
        let expected = match self.model.logins.get(&session) {
            None => Err("not_logged_in".to_owned()),
            Some(_) if to.is_some_and(|to| !self.model.accounts.contains_key(&to)) => {
                Err("unknown_account".to_owned())
            }
            Some((from, _)) => {
                self.model.messages.push((*from, to));
                self.model.drop_old(4);
                Ok(self.model.messages.len() as u64)
            }
        };
        assert_eq!(found, expected);
    }

    /// The last messages are those that it may see.
    fn look_back(&self, name: usize, most: u32) {
        let params = format!("name={}&limit={most}", NAMES[name]);
        let page: Value =
            serde_json::from_str(&self.replicas.query("chat", "history", &params).unwrap()).unwrap();
        let found = page["messages"].as_array().unwrap().iter();
        let all = self.model.visible(name, self.model.accounts[&name]);
        let expected = &all[all.len().saturating_sub(most as usize)..];
        assert_eq!(found.map(|row| row["number"].as_u64().unwrap()).collect::<Vec<_>>(), expected);
    }

    /// A device is offered what it may see and has not marked, in order.
    fn take(&mut self, session: u64, most: u32, marks: bool) {
        let Some(device @ (name, _)) = self.model.logins.get(&session).copied() else { return };
        let cursor = self.cursors[&session];
        let params = format!("name={}&after={cursor}&limit={most}", NAMES[name]);
        let page: Value =
            serde_json::from_str(&self.replicas.query("chat", "inbox", &params).unwrap()).unwrap();
        let found =
            page["messages"].as_array().unwrap().iter().map(|message| message["number"].as_u64().unwrap());
        let begin = cursor.max(self.model.accounts[&name]);
        let all = self.model.visible(name, begin);
        let expected = &all[..all.len().min(most as usize)];
        assert_eq!(found.collect::<Vec<_>>(), expected);
        assert_eq!(page["dropped"], self.model.oldest.saturating_sub(begin + 1));
        let upto = page["upto"].as_u64().unwrap();
        assert!(upto >= cursor && expected.last().is_none_or(|last| *last <= upto));
        self.cursors.insert(session, upto);
        self.look_back(name, most);
        if marks {
            let before = self.model.marked[&device];
            let reply = self.send(session, &Command::Mark { delivered: upto, read: 0 }).unwrap();
            let Reply::Marked { delivered, .. } = reply else { panic!("{reply:?}") };
            assert_eq!(delivered, upto.max(before));
            self.model.marked.insert(device, delivered);
        }
    }
}

fn device_name(phone: bool) -> &'static str {
    if phone { "phone" } else { "default" }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn chat_agrees_with_a_model(steps in vec(step(), 1..120)) {
        let mut world =
            World { replicas: Replicas::new(), model: Model::new(), cursors: BTreeMap::new() };
        for (at, step) in steps.iter().enumerate() {
            world.step(step);
            if at % 7 == 0 {
                world.replicas.flush_second();
            }
        }
    }
}
