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

#[test]
fn chat_commands() {
    let (ada, phone) = (text("ada"), text("phone"));
    let fields = json!({"name": "ada", "device": "phone", "create": true});
    check("chat", "login", fields, &[vec![0], ada.clone(), phone.clone(), vec![1]]);
    check("chat", "logout", json!({}), &[vec![1]]);
    check("chat", "say", json!({"to": null, "text": "hi"}), &[vec![2, 0], text("hi")]);
    check("chat", "say", json!({"to": "ada", "text": "hi"}), &[vec![2, 1], ada.clone(), text("hi")]);
    check("chat", "mark", json!({"delivered": 7, "read": 3}), &[vec![3, 7, 3]]);
    check("chat", "delete", json!({"name": "ada", "admin": false}), &[vec![4], ada, vec![0]]);
    check("chat", "retain", json!({"messages": 9}), &[vec![5, 9]]);
    check("chat", "forget", json!({"device": "phone"}), &[vec![6], phone]);
}

#[test]
fn exchange_commands() {
    let (a, ada) = (text("A"), text("ada"));
    let fields = json!({"stock": "A", "side": "buy", "quantity": 3, "client": "ada"});
    check("exchange", "order", fields, &[vec![0], a.clone(), vec![0, 3], ada.clone()]);
    let fields = json!({"stock": "A", "side": "sell", "quantity": 3, "client": "ada"});
    check("exchange", "order", fields, &[vec![0], a.clone(), vec![1, 3], ada]);
    let stock = json!({"name": "A", "price": 5, "quantity": 6});
    check("exchange", "add_stock", stock.clone(), &[vec![1], a.clone(), vec![5, 6]]);
    check("exchange", "reprice", json!({"stock": "A", "price": 5}), &[vec![2], a.clone(), vec![5]]);
    check("exchange", "load", json!({"stocks": [stock]}), &[vec![3, 1], a, vec![5, 6]]);
}

#[test]
fn jobs_commands() {
    let (q, w) = (text("q"), text("W1"));
    let fields = json!({
        "queue": "q", "payload": "x", "key": "k", "priority": 5, "delay_ms": 1, "attempts": 2, "backoff_ms": 3,
    });
    let expected = [vec![0], q.clone(), text("x"), vec![1], text("k"), vec![5, 1, 2, 3]];
    check("jobs", "submit", fields, &expected);
    let fields = json!({"queue": "q", "worker": "W1", "lease_ms": 8, "run": 9});
    check("jobs", "join", fields, &[vec![1], q.clone(), w, vec![8, 9]]);
    check("jobs", "leave", json!({"member": 4}), &[vec![2, 4]]);
    check("jobs", "claim", json!({"member": 4}), &[vec![3, 4]]);
    let fields = json!({"member": 4, "token": 5, "progress": "half"});
    check("jobs", "heartbeat", fields, &[vec![4, 4, 5], text("half")]);
    check("jobs", "complete", json!({"id": 4, "token": 5, "result": "y"}), &[vec![5, 4, 5], text("y")]);
    let fields = json!({"id": 4, "token": 5, "error": "e", "last": true});
    check("jobs", "fail", fields, &[vec![6, 4, 5], text("e"), vec![1]]);
    let fields = json!({"member": 4, "epoch": 6, "phase": 2, "token": 5});
    check("jobs", "acknowledge", fields, &[vec![7, 4, 6, 2, 5]]);
    check("jobs", "cancel", json!({"id": 4}), &[vec![8, 4]]);
    check("jobs", "retry", json!({"id": 4}), &[vec![9, 4]]);
    check("jobs", "purge", json!({"queue": "q"}), &[vec![10], q]);
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
