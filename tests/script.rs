//! `scripts/cluster.sh`, as a user types it: on the ports that it always takes.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

/// The script's ports: of servers, of their peers, and of detectors and manager.
const PORTS: [u16; 14] = [8000, 8001, 8002, 8003, 9000, 9001, 9002, 9003, 8101, 8102, 8200, 8201, 8202, 8203];

struct Script {
    dir: tempfile::TempDir,
}

impl Script {
    /// `None`, and said loudly, when somebody else has the ports.
    fn new(test: &str) -> Option<Self> {
        if let Some(port) = PORTS.iter().find(|port| TcpListener::bind(("127.0.0.1", **port)).is_err()) {
            // Not by a macro, whose output the test runner keeps to itself when a test passes.
            let text = format!("SKIPPED {test}: port {port} is in use, and scripts/cluster.sh needs it");
            let _ = writeln!(std::io::stderr(), "\n*** {text} ***\n");
            return None;
        }
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        Some(Self { dir })
    }

    fn output(&self, line: &str) -> Output {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(root.join("scripts/cluster.sh"));
        command.args(line.split_whitespace()).current_dir(root);
        command
            .env("QUORATE_BIN", env!("CARGO_BIN_EXE_quorate"))
            .env("QUORATE_DIR", self.dir.path().join("cluster"));
        command.output().expect("it starts")
    }

    /// Its output, when it ends well.
    fn run(&self, line: &str) -> String {
        let output = self.output(line);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "cluster.sh {line}: {:?}\n{out}\n{err}", output.status);
        out.into_owned()
    }

    fn node_id(&self, server: &str) -> String {
        let identity = self.dir.path().join("cluster").join(server).join("data/identity.json");
        let identity = std::fs::read_to_string(identity).expect("an identity");
        let identity: serde_json::Value = serde_json::from_str(&identity).expect("JSON");
        identity["node_id"].to_string()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.output("down --clean");
    }
}

/// One test: there is one set of ports.
#[test]
fn the_cluster_script_does_what_it_says() {
    let Some(script) = Script::new("the_cluster_script_does_what_it_says") else { return };
    let demo = script.run("demo");
    assert!(demo.contains("each acknowledged add is in it exactly once"), "{demo}");
    assert!(demo.contains("all three replicas are at revision"), "{demo}");
    assert!(demo.contains("without S2 the voters are S3 W"), "{demo}");

    let up = script.run("up 3 --bare");
    assert!(up.contains("Up: S1 S2 S3 are voters and ready"), "{up}");
    assert_eq!(script.output("up 3 4").status.code(), Some(2), "a mistake in the command line");
    script.run("kill S1");
    let taken = TcpListener::bind("127.0.0.1:8001").expect("S1's port is free");
    let refused = script.output("start S1");
    assert_eq!(refused.status.code(), Some(1));
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("8001") && text.contains("in use"), "{text}");
    drop(taken);
    script.run("start S1");
    script.run("pause S2");
    script.run("resume S2");

    let before = script.node_id("S3");
    script.run("wipe S3");
    script.run("start S3");
    assert_ne!(script.node_id("S3"), before, "a wiped server joins under a new node id");
    let status = script.run("status");
    assert!(status.contains("voters    S1 S2 S3") && status.contains("learners  -"), "{status}");

    let down = script.run("down");
    assert!(down.contains("Their data is in"), "{down}");

    // The same servers, now with detectors and manager.
    let up = script.run("up --mode passive");
    assert!(up.contains("Up: S1 S2 S3"), "what is there is resumed: {up}");
    assert_eq!(script.output("up --bare").status.code(), Some(1), "they have their detectors");
    let killed = script.run("kill S2");
    assert!(killed.contains("it is launched again by itself"), "{killed}");
    script.run("kill S3 --stay");
    script.run("start S3");
    let before = script.node_id("S1");
    script.run("wipe S1");
    script.run("start S1");
    assert_ne!(script.node_id("S1"), before, "a wiped server joins under a new node id");
    for role in ["GFD", "RM", "LFD2"] {
        script.run(&format!("kill {role}"));
        script.run(&format!("start {role}"));
    }
    // A detector that was killed leaves its server, and the next one adopts it.
    let status = script.run("status");
    for line in ["settings", "mode = passive", "RM", "sees: primary", "LFD2"] {
        assert!(status.contains(line), "{line} is not in\n{status}");
    }
    assert!(
        script.run("logs S2").contains("adopted the server"),
        "the server writes where its detector does"
    );
    let down = script.run("down");
    assert!(down.contains("Down: ended 4 servers"), "{down}");
    script.run("down --clean");
    assert!(script.run("status").contains("No cluster in"));
}
