//! Commands and replies stand in logs and snapshots by position: these bytes must never change.

use serde_json::json;

use crate::services::registry;

/// A string, as bincode stores it.
fn text(text: &str) -> Vec<u8> {
    [&[text.len() as u8], text.as_bytes()].concat()
}

fn check(service: &str, command: &str, fields: serde_json::Value, expected: &[Vec<u8>]) {
    let registry = registry();
    let service = registry.get(service).unwrap();
    let body = service.command_from_json(command, fields.to_string().as_bytes()).unwrap();
    // Version 1, then the command.
    assert_eq!(body, [vec![1], expected.concat()].concat(), "{command} {fields}: old logs would not be read");
    assert_eq!(service.command_to_json(&body).unwrap(), json!({ command: fields }));
}

/// Signed numbers are stored zigzag: 5 is 10, -3 is 5.
#[test]
fn counter_commands() {
    let name = text("hits");
    check("counter", "add", json!({"name": "hits", "amount": 5}), &[vec![0], name.clone(), vec![10]]);
    check("counter", "minus", json!({"name": "hits", "amount": -3}), &[vec![1], name.clone(), vec![5]]);
    check("counter", "set", json!({"name": "hits", "value": 1}), &[vec![2], name.clone(), vec![2]]);
    let fields = json!({"name": "hits", "expect": 1, "value": 2});
    check("counter", "compare_and_set", fields, &[vec![3], name.clone(), vec![2, 4]]);
    check("counter", "delete", json!({"name": "hits"}), &[vec![4], name]);
}

#[test]
fn register_commands() {
    let name = text("r");
    check("register", "set", json!({"name": "r", "text": "ab"}), &[vec![0], name.clone(), text("ab")]);
    check("register", "append", json!({"name": "r", "text": "c"}), &[vec![1], name.clone(), text("c")]);
    let fields = json!({"name": "r", "expect": null, "text": "x"});
    check("register", "compare_and_set", fields, &[vec![2], name.clone(), vec![0], text("x")]);
    let fields = json!({"name": "r", "expect": "x", "text": "y"});
    check("register", "compare_and_set", fields, &[vec![2], name.clone(), vec![1], text("x"), text("y")]);
    check("register", "delete", json!({"name": "r"}), &[vec![3], name]);
}

/// Replies are kept in sessions, hence in flushes and snapshots.
#[test]
fn replies() {
    let registry = registry();
    let json = |service: &str, reply: &[u8]| {
        let mut json = Vec::new();
        registry.get(service).unwrap().reply_to_json(reply, &mut json).unwrap();
        json
    };
    assert_eq!(json("counter", &[1, 10, 5]), br#"{"previous":5,"value":-3}"#);
    let reply = [vec![1, 1], text("a"), vec![1, 1, 0, 1, 7]].concat();
    assert_eq!(json("register", &reply), br#"{"previous":"a","previous_length":1,"text":null,"length":7}"#);
}

#[test]
fn a_missing_name_is_stored_as_default() {
    let registry = registry();
    for (service, command, fields) in [
        ("counter", "add", json!({"amount": 1})),
        ("counter", "delete", json!({})),
        ("register", "compare_and_set", json!({"expect": null, "text": ""})),
        ("register", "delete", json!({})),
    ] {
        let service = registry.get(service).unwrap();
        let body = service.command_from_json(command, fields.to_string().as_bytes()).unwrap();
        assert_eq!(service.command_to_json(&body).unwrap()[command]["name"], "default");
    }
}
