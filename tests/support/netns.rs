//! Machines of one's own: network namespaces on a bridge, whose links a test cuts. Needs root and `ip`.

use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

/// The address of the test itself is the last one.
const NET: &str = "10.77.0";
const OWN: u8 = 254;

/// Says that the test runs in namespaces that it may fill.
const INSIDE: &str = "QUORATE_TEST_NAMESPACE";

/// Namespaces on a bridge, in a namespace of the test's own. They end with the test's process.
#[derive(Debug)]
pub(crate) struct Net {
    /// One for each machine, from 1.
    names: Vec<String>,
}

/// Runs the ignored test `name` of this program in namespaces of its own; or says why that cannot be done here.
pub(crate) fn enter(name: &str) -> Result<(), String> {
    let root = std::fs::metadata("/proc/self").map_err(|e| e.to_string())?.uid() == 0;
    if !root {
        return Err("network namespaces need root".to_owned());
    }
    ip("-V")?;
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let probe = Command::new("unshare").args(["--net", "--mount", "true"]).output();
    match probe {
        Ok(output) if output.status.success() => {}
        Ok(output) => return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => return Err(format!("unshare: {error}")),
    }
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--"]).arg(program);
    command.args(["--exact", name, "--ignored", "--nocapture"]).env(INSIDE, "1");
    let status = command.status().map_err(|e| e.to_string())?;
    assert!(status.success(), "{name}, in its namespaces, ended with {status}");
    Ok(())
}

/// Whether the process is in namespaces of its own.
pub(crate) fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

impl Net {
    /// So many machines, all linked.
    pub(crate) fn new(machines: u8) -> Self {
        let must = |words: String| ip(&words).unwrap_or_else(|error| panic!("ip {words}: {error}"));
        must("link set lo up".to_owned());
        must("link add hub type bridge".to_owned());
        must(format!("addr add {NET}.{OWN}/24 dev hub"));
        must("link set hub up".to_owned());
        let names = (1..=machines).map(|n| format!("quorate-test-{}-{n}", std::process::id()));
        let net = Self { names: names.collect() };
        for (n, name) in (1..).zip(&net.names) {
            must(format!("netns add {name}"));
            must(format!("link add port{n} type veth peer name eth0 netns {name}"));
            must(format!("link set port{n} master hub up"));
            must(format!("-n {name} link set lo up"));
            must(format!("-n {name} link set eth0 up"));
            must(format!("-n {name} addr add {}/24 dev eth0", net.host(n)));
        }
        net
    }

    /// The namespace of the `n`th machine.
    pub(crate) fn name(&self, n: u8) -> &str {
        &self.names[usize::from(n) - 1]
    }

    /// Its address.
    pub(crate) fn host(&self, n: u8) -> String {
        format!("{NET}.{n}")
    }

    /// Takes the machine off the net, or puts it back.
    pub(crate) fn link(&self, n: u8, up: bool) {
        let state = if up { "up" } else { "down" };
        ip(&format!("link set port{n} {state}")).expect("the machine's port");
    }

    /// Lets the machine send nothing to another one, or lets it again.
    pub(crate) fn mute(&self, n: u8, to: u8, mute: bool) {
        let what = if mute { "add" } else { "del" };
        ip(&format!("-n {} route {what} blackhole {}/32", self.name(n), self.host(to))).expect("a route");
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in &self.names {
            // The mounts go with the process's namespace, the names would stay.
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

fn ip(words: &str) -> Result<(), String> {
    let output = Command::new("ip").args(words.split(' ')).output().map_err(|e| format!("ip: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}
