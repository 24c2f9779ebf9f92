//! The view: who is alive, as the global fault detector sees it. It is not the Raft membership.
//!
//! - `revision` grows by one with each change, and only then.
//! - What is known of a server goes from one incarnation (one launch of its process) to a later one, never back.
//! - A detector's reports are taken in its own order: what it sent earlier and comes later changes nothing.

use std::collections::BTreeMap;

use quorate_storage::delta::Millis;
use serde::{Deserialize, Serialize};

use super::accrual::Health;

/// One server, as its detector sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The detector's name.
    pub lfd: String,
    /// Where the detector listens, as a URL.
    pub lfd_url: String,
    /// When the detector was started, in milliseconds since the Unix epoch, and the report's number since then: the
    /// order of its reports.
    pub order: (Millis, u64),
    /// The server's name.
    pub name: String,
    /// Where the server serves clients, as a URL.
    pub url: String,
    /// What is thought of the server.
    pub state: Health,
    /// The launch of which this is said; later ones have greater numbers. 0: it was never launched.
    pub incarnation: u64,
    /// Somebody wants it to stay down.
    pub held: bool,
}

/// A server in the view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The server's name.
    pub name: String,
    /// Its detector.
    pub lfd: String,
    /// Where its detector listens, as a URL.
    pub lfd_url: String,
    /// Where it serves clients, as a URL.
    pub url: String,
    /// What is thought of it.
    pub state: Health,
    /// Its launch.
    pub incarnation: u64,
    /// Somebody wants it to stay down.
    pub held: bool,
    /// Its detector is silent: the state is what the global one finds, and nobody launches it.
    pub lfd_silent: bool,
    /// Since when it is in this state, by the global detector's clock, in milliseconds since the Unix epoch.
    pub since_ms: Millis,
}

/// All servers that were ever reported.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Grows by one with each change.
    pub revision: u64,
    /// By name.
    pub members: Vec<Member>,
}

impl View {
    /// The names of those that are not dead.
    pub fn alive(&self) -> impl Iterator<Item = &str> {
        self.members.iter().filter(|member| member.state != Health::Dead).map(|member| member.name.as_str())
    }

    /// The server called `name`.
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name == name)
    }
}

/// Makes the view of what the detectors report.
#[derive(Debug, Default)]
pub struct Views {
    view: View,
    /// By detector.
    orders: BTreeMap<String, (Millis, u64)>,
}

impl Views {
    /// The view as it is now.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// A detector has spoken. Gives whether the view has changed.
    pub fn reported(&mut self, report: Report, now: Millis) -> bool {
        let newest = self.orders.entry(report.lfd.clone()).or_default();
        if report.order < *newest {
            return false;
        }
        *newest = report.order;
        let Report { lfd, lfd_url, order: _, name, url, state, incarnation, held } = report;
        let told =
            Member { name, lfd, lfd_url, url, state, incarnation, held, lfd_silent: false, since_ms: now };
        match self.view.members.binary_search_by(|member| member.name.cmp(&told.name)) {
            Err(place) => self.view.members.insert(place, told),
            Ok(place) => {
                let known = &mut self.view.members[place];
                if told.incarnation < known.incarnation {
                    return false;
                }
                let same = told.state == known.state && told.incarnation == known.incarnation;
                let told = Member { since_ms: if same { known.since_ms } else { now }, ..told };
                if *known == told {
                    return false;
                }
                *known = told;
            }
        }
        self.view.revision += 1;
        true
    }

    /// The global detector itself thinks so of the server called `name`, whose own detector is silent. Gives whether the view has
    /// changed.
    pub fn judged(&mut self, name: &str, state: Health, now: Millis) -> bool {
        let Some(known) = self.view.members.iter_mut().find(|member| member.name == name) else {
            return false;
        };
        if known.state == state && known.lfd_silent {
            return false;
        }
        if known.state != state {
            (known.state, known.since_ms) = (state, now);
        }
        known.lfd_silent = true;
        self.view.revision += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, state: Health, incarnation: u64, number: u64) -> Report {
        Report {
            lfd: format!("LFD-{name}"),
            lfd_url: "http://lfd".to_owned(),
            order: (1, number),
            name: name.to_owned(),
            url: "http://server".to_owned(),
            state,
            incarnation,
            held: false,
        }
    }

    #[test]
    fn only_changes_take_a_revision() {
        let mut views = Views::default();
        assert!(views.reported(report("S2", Health::Alive, 1, 1), 10));
        assert!(views.reported(report("S1", Health::Alive, 1, 1), 11));
        assert!(!views.reported(report("S1", Health::Alive, 1, 2), 12));
        let view = views.view();
        assert_eq!((view.revision, view.alive().collect::<Vec<_>>()), (2, vec!["S1", "S2"]));
        assert_eq!(view.member("S1").unwrap().since_ms, 11);
        assert!(views.reported(report("S1", Health::Dead, 1, 3), 13));
        assert_eq!((views.view().revision, views.view().alive().count()), (3, 1));
        assert_eq!(views.view().member("S1").unwrap().since_ms, 13);
    }

    #[test]
    fn what_is_late_changes_nothing() {
        let mut views = Views::default();
        assert!(views.reported(report("S1", Health::Dead, 5, 9), 1));
        assert!(!views.reported(report("S1", Health::Alive, 5, 8), 2), "sent before");
        assert!(!views.reported(report("S1", Health::Alive, 4, 10), 3), "of a process that was before");
        assert!(views.reported(report("S1", Health::Alive, 6, 11), 4));
        // A detector that was started again counts its reports anew.
        let again = Report { order: (2, 0), ..report("S1", Health::Suspect, 6, 0) };
        assert!(views.reported(again, 5));
        assert!(!views.reported(report("S1", Health::Alive, 6, 12), 6));
        assert_eq!(views.view().member("S1").unwrap().state, Health::Suspect);
    }

    #[test]
    fn a_judgement_of_its_own() {
        let mut views = Views::default();
        assert!(!views.judged("S1", Health::Dead, 1), "nobody knows it");
        views.reported(report("S1", Health::Alive, 1, 1), 1);
        assert!(views.judged("S1", Health::Dead, 2) && !views.judged("S1", Health::Dead, 3));
        let member = views.view().member("S1").unwrap();
        assert_eq!((views.view().revision, member.since_ms, member.lfd_silent), (2, 2, true));
        // Its detector is back, and has not launched it yet.
        assert!(views.reported(report("S1", Health::Dead, 1, 2), 4));
        let member = views.view().member("S1").unwrap();
        assert_eq!((views.view().revision, member.since_ms, member.lfd_silent), (3, 2, false));
        // A detector is missed whose server lives.
        views.reported(report("S1", Health::Alive, 1, 3), 5);
        assert!(views.judged("S1", Health::Alive, 6) && !views.judged("S1", Health::Alive, 7));
        assert_eq!(views.view().member("S1").unwrap().since_ms, 5);
    }
}
