//! What a line of the chat means.

pub(super) const HELP: &str = "\
text                     to all
>> NAME: text            to NAME alone
/list [PATTERN]          accounts, those whose names begin with what the regular expression says
/history [NAME] [N]      the last N messages (20), those from and to NAME; and how many have them
/delete NAME             deletes your account (with --admin anybody's)
/forget DEVICE           forgets a device of yours that is no longer used
/logout                  leaves; the account stays
//text                   says /text";

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Nothing,
    Say { to: Option<&'a str>, text: &'a str },
    List(Option<&'a str>),
    History { with: Option<&'a str>, limit: Option<u32> },
    Delete(&'a str),
    Forget(&'a str),
    Help,
    Logout,
}

impl<'a> Line<'a> {
    /// Reads a line; the error says what is wrong with it.
    pub(super) fn parse(line: &'a str) -> Result<Self, String> {
        let line = line.trim_end_matches(['\n', '\r']);
        if line.trim().is_empty() {
            return Ok(Self::Nothing);
        }
        if let Some(private) = line.strip_prefix(">>") {
            let parts = private.split_once(':').map(|(to, text)| (to.trim(), text.trim_start()));
            return match parts {
                Some((to, text)) if !to.is_empty() && !text.is_empty() => {
                    Ok(Self::Say { to: Some(to), text })
                }
                _ => Err("not sent: what goes to one is written >> NAME: text".to_owned()),
            };
        }
        let Some(command) = line.strip_prefix('/') else {
            return Ok(Self::Say { to: None, text: line });
        };
        if command.starts_with('/') {
            return Ok(Self::Say { to: None, text: command });
        }
        let mut words = command.split_whitespace();
        let name = words.next().unwrap_or_default();
        let rest: Vec<&str> = words.collect();
        match (name, &rest[..]) {
            ("list", []) => Ok(Self::List(None)),
            ("list", [pattern]) => Ok(Self::List(Some(pattern))),
            ("history", []) => Ok(Self::History { with: None, limit: None }),
            ("history", [one]) => match one.parse() {
                Ok(0) => Err("/history N: N is a number from 1 on".to_owned()),
                Ok(limit) => Ok(Self::History { with: None, limit: Some(limit) }),
                Err(_) => Ok(Self::History { with: Some(one), limit: None }),
            },
            ("history", [with, limit]) => match limit.parse() {
                Ok(limit @ 1..) => Ok(Self::History { with: Some(with), limit: Some(limit) }),
                _ => Err(format!("/history NAME N: N is a number from 1 on, {limit} is not")),
            },
            ("delete", [name]) => Ok(Self::Delete(name)),
            ("forget", [device]) => Ok(Self::Forget(device)),
            ("logout" | "quit" | "exit", []) => Ok(Self::Logout),
            ("help", []) => Ok(Self::Help),
            ("list" | "history" | "delete" | "forget" | "logout" | "help", _) => {
                Err(format!("/{name} takes something else; /help says what"))
            }
            _ => Err(format!("not sent: there is no /{name}; /help lists the commands, //{name} says it")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        let parse = |line| Line::parse(line).unwrap();
        assert_eq!(parse("hello, all"), Line::Say { to: None, text: "hello, all" });
        assert_eq!(parse(">> ada: hello: you"), Line::Say { to: Some("ada"), text: "hello: you" });
        assert_eq!(parse(">>ada:hello"), Line::Say { to: Some("ada"), text: "hello" });
        assert_eq!(parse("//shrug"), Line::Say { to: None, text: "/shrug" });
        assert_eq!(parse("  "), Line::Nothing);
        assert_eq!(parse("/list a.*"), Line::List(Some("a.*")));
        assert_eq!(parse("/history"), Line::History { with: None, limit: None });
        assert_eq!(parse("/history 5"), Line::History { with: None, limit: Some(5) });
        assert_eq!(parse("/history ada 5"), Line::History { with: Some("ada"), limit: Some(5) });
        assert_eq!(parse("/delete ada"), Line::Delete("ada"));
        assert_eq!(parse("/logout"), Line::Logout);
        for mistake in [
            ">> ada",
            ">> : text",
            ">> ada:",
            "/nothing",
            "/delete",
            "/history ada x",
            "/history 0",
            "/list a b",
            "/",
        ] {
            assert!(Line::parse(mistake).is_err(), "{mistake}");
        }
    }
}
