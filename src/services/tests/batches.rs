//! Batches of one service's commands are read in one pass, and mean what they mean command by command.

use crate::services::registry;

const ADD: &str = r#"{"add":{"name":"a","amount":1}}"#;
const DELETE: &str = r#" { "delete" : { } } "#;

fn one(command: &str) -> String {
    format!(r#"{{"counter":{command}}}"#)
}

#[test]
fn a_batch_is_its_commands() {
    let registry = registry();
    let counter = registry.get("counter").unwrap();
    let batch = format!("[{}, {},{{\"\\u0063ounter\":{ADD}}}] ", one(ADD), one(DELETE));
    let commands = counter.batch_from_json(&batch, 3).unwrap();
    let (mut bytes, mut ends) = (Vec::new(), Vec::new());
    for command in [ADD, DELETE, ADD] {
        counter.command_from_tagged_json(command, &mut bytes).unwrap();
        ends.push(bytes.len());
    }
    assert_eq!((commands.bytes, commands.ends), (bytes, ends));
    assert!(counter.batch_from_json("[]", 3).unwrap().ends.is_empty());
}

#[test]
fn anything_else_is_left_to_the_general_way() {
    let registry = registry();
    let counter = registry.get("counter").unwrap();
    let add = one(ADD);
    let too_many = format!("[{add},{add},{add},{add}]");
    for batch in [
        too_many.as_str(),
        &format!("[{add}] {add}"),
        &format!("[{add},"),
        &format!(r#"[{add},{{"register":{{"delete":{{}}}}}}]"#),
        &format!(r#"[{{"counter":{ADD},"counter":{ADD}}}]"#),
        r#"[{"counter":{"add":{"amount":1.5}}}]"#,
        r#"[{"counter":{"explode":{}}}]"#,
        "[{}]",
        "[1]",
        "{}",
        "",
    ] {
        assert!(counter.batch_from_json(batch, 3).is_none(), "{batch}");
    }
}
