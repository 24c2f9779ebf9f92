//! Which server to ask: the list that the caller gave, what the cluster pointed at since, and who answered last.

use std::sync::{Mutex, MutexGuard, PoisonError};

use reqwest::Url;

/// How many servers the client keeps in mind. Hints beyond that replace the newest hint.
const SERVERS_MAX: usize = 64;

/// The known servers. The preferred one is asked first: the primary when it is known, else who answered last.
#[derive(Debug)]
pub(crate) struct Servers {
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    urls: Vec<Url>,
    preferred: usize,
    /// The servers' names, as the cluster told them.
    names: Vec<(Url, String)>,
}

impl Servers {
    pub(crate) fn new(urls: Vec<Url>) -> Self {
        debug_assert!(!urls.is_empty(), "the builder refuses an empty list");
        Self { known: Mutex::new(Known { urls, preferred: 0, names: Vec::new() }) }
    }

    /// A route for one request: it starts at the preferred server and then goes round.
    pub(crate) fn route(&self) -> Route {
        let known = self.lock();
        let mut urls = known.urls.clone();
        urls.rotate_left(known.preferred);
        Route { urls, at: 0, hints: 0, pinned: false }
    }

    /// All that are known.
    pub(crate) fn all(&self) -> Vec<Url> {
        self.lock().urls.clone()
    }

    /// Notes what the servers are called.
    pub(crate) fn note_names(&self, names: Vec<(Url, String)>) {
        self.lock().names = names;
    }

    /// What the server at this address is called; the address itself if that is not known.
    pub(crate) fn name_of(&self, url: &str) -> String {
        let known = self.lock();
        let found = known.names.iter().find(|(known, _)| name(known) == url);
        found.map_or_else(|| url.to_owned(), |(_, name)| name.clone())
    }

    /// This server answered, or is known to be the primary: ask it first from now on.
    pub(crate) fn prefer(&self, url: &Url) {
        let mut known = self.lock();
        known.preferred = match known.urls.iter().position(|other| other == url) {
            Some(at) => at,
            None => {
                known.urls.truncate(SERVERS_MAX - 1);
                known.urls.push(url.clone());
                known.urls.len() - 1
            }
        };
    }

    /// This server failed: spare other requests from starting with it.
    pub(crate) fn avoid(&self, url: &Url) {
        let mut known = self.lock();
        if known.urls.get(known.preferred) == Some(url) {
            known.preferred = (known.preferred + 1) % known.urls.len();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing in here panics half-way, so a poisoned lock still guards a good list.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The order in which one request asks the servers.
#[derive(Debug)]
pub(crate) struct Route {
    urls: Vec<Url>,
    at: usize,
    hints: u32,
    /// There is nowhere else to go.
    pinned: bool,
}

/// How many hints one request follows at once; later ones wait like any other retry, so that two servers that
/// point at each other cannot keep a client spinning.
const HINTS_AT_ONCE: u32 = 3;

impl Route {
    /// A route that stays where it is.
    pub(crate) fn only(url: Url) -> Self {
        Self { urls: vec![url], at: 0, hints: 0, pinned: true }
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned
    }

    pub(crate) fn current(&self) -> &Url {
        &self.urls[self.at]
    }

    pub(crate) fn len(&self) -> usize {
        self.urls.len()
    }

    pub(crate) fn next(&mut self) {
        self.at = (self.at + 1) % self.urls.len();
    }

    /// Goes where a server pointed. Says whether that may be tried without a pause.
    pub(crate) fn follow(&mut self, hint: &str) -> bool {
        let Ok(url) = parse(hint) else {
            self.next();
            return false;
        };
        if self.pinned {
            return false;
        }
        if self.current() == &url {
            self.next();
            return false;
        }
        match self.urls.iter().position(|other| other == &url) {
            Some(at) => self.at = at,
            None => {
                self.urls.truncate(SERVERS_MAX - 1);
                self.urls.push(url);
                self.at = self.urls.len() - 1;
            }
        }
        self.hints += 1;
        self.hints <= HINTS_AT_ONCE
    }
}

/// Reads a server's address: `http://HOST:PORT`, or `HOST:PORT` for short.
pub(crate) fn parse(text: &str) -> Result<Url, String> {
    let text = text.trim();
    // A URL takes a number for an IP address.
    if text.parse::<u64>().is_ok() {
        return Err(format!(
            "`{text}` is a port without a host; expected HOST:PORT, such as 127.0.0.1:{text}"
        ));
    }
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = Url::parse(&full).map_err(|error| format!("`{text}` is no server address: {error}"))?;
    if url.scheme() != "http" {
        return Err(format!("`{text}`: only http:// is spoken here; put TLS in front with a proxy"));
    }
    if url.host_str().is_none_or(str::is_empty) || url.cannot_be_a_base() {
        return Err(format!("`{text}` names no host; expected http://HOST:PORT"));
    }
    // Ignored, they would hide a mistake.
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(format!("`{text}`: a server's address has no path; expected http://HOST:PORT"));
    }
    Ok(url)
}

/// A server's address as people write it: without the slash at its end.
pub(crate) fn name(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}
