//! Is a server's name one, and can others use the addresses that they will be told? Asked before anything is written.

use std::net::{IpAddr, SocketAddr};

use quorate_storage::identity::valid_name;
use reqwest::Url;

use super::server_args::InitArgs;
use crate::client::parse_server;
use crate::config::ConfigError;

/// Reads an address to listen on.
pub(crate) fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("`{text}` is no IP:PORT; expected for example 127.0.0.1:8001"))
}

/// Checks all of `args`. With `written`, the addresses are written down before the server has taken its ports.
pub(crate) fn check(args: &InitArgs, written: bool) -> Result<(), ConfigError> {
    if !valid_name(&args.name) {
        return wrong(
            "--name",
            format!("{:?} is not a server's name: use 1 to 64 letters, digits, '-', '_' or '.'", args.name),
        );
    }
    let (clients, peers) = (args.listen, args.peer_listen);
    let overlap = clients.ip() == peers.ip() || clients.ip().is_unspecified() || peers.ip().is_unspecified();
    if clients.port() != 0 && clients.port() == peers.port() && overlap {
        return wrong(
            "--peer-listen",
            format!("{peers} is taken by --listen {clients}; give it a port of its own"),
        );
    }
    match &args.advertise {
        Some(url) => {
            let parsed = parse_server(url).or_else(|cause| wrong("--advertise", cause))?;
            let host = parsed.host_str().unwrap_or_default();
            usable("--advertise", url, host, parsed.port_or_known_default().unwrap_or(0))?;
        }
        None => told("--listen", clients, "--advertise http://HOST:PORT", written)?,
    }
    match &args.peer_advertise {
        Some(address) => host_and_port("--peer-advertise", address),
        None => told("--peer-listen", peers, "--peer-advertise HOST:PORT", written),
    }
}

/// Checks a `HOST:PORT` that somebody is to connect to.
pub(crate) fn host_and_port(flag: &'static str, address: &str) -> Result<(), ConfigError> {
    let parts = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let plain = |host: &str| {
        !host.is_empty() && !host.contains(['/', '@', ' ']) && (host.starts_with('[') || !host.contains(':'))
    };
    match parts {
        Some((host, port)) if plain(host) => usable(flag, address, host, port),
        _ => wrong(flag, format!("`{address}` is no HOST:PORT; expected for example 10.0.0.1:9001")),
    }
}

/// The URL of whoever serves HTTP at a `HOST:PORT`, which may be written as a URL.
pub(crate) fn url_of(flag: &'static str, address: &str) -> Result<Url, ConfigError> {
    let address = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
    host_and_port(flag, address)?;
    Url::parse(&format!("http://{address}")).or_else(|cause| wrong(flag, format!("{address}: {cause}")))
}

/// An address to listen on that others are told as it is.
fn told(flag: &'static str, address: SocketAddr, instead: &str, written: bool) -> Result<(), ConfigError> {
    if address.ip().is_unspecified() {
        return wrong(
            flag,
            format!(
                "{address} is every address of this machine, and tells others none of them; say with {instead} where they \
             reach it"
            ),
        );
    }
    if written && address.port() == 0 {
        return wrong(flag, format!("{address}: `cluster init` writes the address down, so choose a port"));
    }
    Ok(())
}

fn usable(flag: &'static str, text: &str, host: &str, port: u16) -> Result<(), ConfigError> {
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
    if ip.is_ok_and(|ip| ip.is_unspecified()) || port == 0 {
        return wrong(
            flag,
            format!("nobody can connect to `{text}`; give an address and a port that others reach"),
        );
    }
    Ok(())
}

fn wrong<T>(flag: &'static str, cause: String) -> Result<T, ConfigError> {
    Err(ConfigError::Value { origin: flag.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(listen: &str, peer_listen: &str) -> InitArgs {
        InitArgs {
            name: "S1".to_owned(),
            data: "d".into(),
            listen: socket(listen).unwrap(),
            peer_listen: socket(peer_listen).unwrap(),
            advertise: None,
            peer_advertise: None,
        }
    }

    #[track_caller]
    fn refused(args: &InitArgs, written: bool, text: &str) {
        let error = check(args, written).unwrap_err().to_string();
        assert!(error.contains(text), "no {text:?} in {error}");
    }

    #[test]
    fn addresses_are_of_use_to_others() {
        let good = args("127.0.0.1:8001", "127.0.0.1:9001");
        check(&good, true).unwrap();
        check(&args("[::1]:8001", "[::1]:9001"), true).unwrap();
        check(&args("127.0.0.1:0", "127.0.0.1:0"), false).unwrap();
        check(&args("10.0.0.1:8001", "10.0.0.2:8001"), true).unwrap();
        refused(&args("127.0.0.1:0", "127.0.0.1:9001"), true, "--listen");
        refused(&args("127.0.0.1:8001", "127.0.0.1:0"), true, "--peer-listen");
        refused(&args("127.0.0.1:8001", "127.0.0.1:8001"), false, "a port of its own");
        refused(&args("0.0.0.0:8001", "127.0.0.1:8001"), false, "a port of its own");
        let mut open = args("0.0.0.0:8001", "[::]:9001");
        refused(&open, false, "--advertise");
        open.advertise = Some("http://host:8001".to_owned());
        refused(&open, false, "--peer-advertise");
        open.peer_advertise = Some("[fe80::1]:9001".to_owned());
        check(&open, true).unwrap();
        for bad in ["https://h:1", "http://0.0.0.0:8001", "http://h:0", "http://", "not a url"] {
            refused(&InitArgs { advertise: Some(bad.to_owned()), ..good.clone() }, false, "--advertise");
        }
        for bad in ["h", "h:", ":1", "h:0", "h:65536", "0.0.0.0:1", "[::]:1", "http://h:1", "::1:1", ""] {
            refused(
                &InitArgs { peer_advertise: Some(bad.to_owned()), ..good.clone() },
                false,
                "--peer-advertise",
            );
        }
        for bad in ["8001", "localhost:8001", "127.0.0.1", "127.0.0.1:65536"] {
            assert!(socket(bad).unwrap_err().contains("127.0.0.1:8001"), "{bad}");
        }
    }

    #[test]
    fn names_are_names() {
        let named = |name: &str| InitArgs { name: name.to_owned(), ..args("127.0.0.1:1", "127.0.0.1:2") };
        check(&named("S-1_a.b"), true).unwrap();
        for bad in ["", "no/name", "a b", "\u{1b}[2J", &"x".repeat(65)] {
            refused(&named(bad), false, "not a server's name");
        }
    }
}
