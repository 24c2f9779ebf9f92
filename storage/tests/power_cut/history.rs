//! What a server was asked to do, and what its disk may hold after a power cut.
//!
//! The log is one ordered file sequence, so what is found must be what the steps `1..=k` leave, for
//! one `k` between the last acknowledged step and the last one begun. The tables must hold what the
//! entries up to their applied id do, at least up to the last acknowledged flush or install.

use std::collections::BTreeMap;
use std::fmt;

use crate::support::Model;

/// One call, written down before it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Vote {
        term: u64,
    },
    /// Appends entries `from..=to`.
    Write {
        term: u64,
        from: u64,
        to: u64,
    },
    Commit {
        index: u64,
    },
    /// Removes what follows `keep`.
    Truncate {
        keep: u64,
    },
    Purge {
        index: u64,
    },
    Sync,
    Flush,
    /// Installs a snapshot of another server: what follows the log's end up to `index` is of `term`.
    Install {
        term: u64,
        index: u64,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vote { term } => write!(f, "vote {term}"),
            Self::Write { term, from, to } => write!(f, "write {term} {from} {to}"),
            Self::Commit { index } => write!(f, "commit {index}"),
            Self::Truncate { keep } => write!(f, "truncate {keep}"),
            Self::Purge { index } => write!(f, "purge {index}"),
            Self::Sync => write!(f, "sync"),
            Self::Flush => write!(f, "flush"),
            Self::Install { term, index } => write!(f, "install {term} {index}"),
        }
    }
}

impl Step {
    fn parse(text: &str) -> Self {
        let mut words = text.split(' ');
        let kind = words.next().unwrap();
        let numbers: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
        match (kind, &numbers[..]) {
            ("vote", &[term]) => Self::Vote { term },
            ("write", &[term, from, to]) => Self::Write { term, from, to },
            ("commit", &[index]) => Self::Commit { index },
            ("truncate", &[keep]) => Self::Truncate { keep },
            ("purge", &[index]) => Self::Purge { index },
            ("sync", []) => Self::Sync,
            ("flush", []) => Self::Flush,
            ("install", &[term, index]) => Self::Install { term, index },
            _ => panic!("not a step: {text}"),
        }
    }
}

/// A log: what can be told without its entries' content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) vote: u64,
    pub(crate) purged: Option<u64>,
    pub(crate) last: u64,
    /// The term of each entry there ever was, up to `last` or an installed snapshot. What is
    /// committed is never rewritten, so this holds for the applied ones too.
    pub(crate) terms: BTreeMap<u64, u64>,
}

impl View {
    pub(crate) fn apply(&mut self, step: Step) {
        match step {
            Step::Vote { term } => self.vote = term,
            Step::Write { term, from, to } => (from..=to).for_each(|index| self.push(term, index)),
            Step::Truncate { keep } => {
                self.last = keep;
                self.terms.split_off(&(keep + 1));
            }
            Step::Purge { index } => {
                self.purged = self.purged.max(Some(index));
                self.last = self.last.max(index);
            }
            Step::Install { term, index } => {
                (self.last + 1..=index).for_each(|index| {
                    self.terms.insert(index, term);
                });
            }
            Step::Commit { .. } | Step::Sync | Step::Flush => {}
        }
    }

    fn push(&mut self, term: u64, index: u64) {
        self.terms.insert(index, term);
        self.last = index;
    }

    /// Whether a log that was found is this one.
    fn is(&self, found: &Found) -> bool {
        let ids_agree = || found.entries.iter().all(|(index, term)| self.terms.get(index) == Some(term));
        (self.vote, self.purged, self.last) == (found.vote, found.purged, found.last) && ids_agree()
    }

    /// The tables after the entries up to `index`.
    pub(crate) fn model_at(&self, index: u64) -> Model {
        let mut model = Model::default();
        for (&index, &term) in self.terms.range(..=index).filter(|(index, _)| **index > 0) {
            model.apply(term, index);
        }
        model
    }
}

/// The log that was found on disk.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) vote: u64,
    pub(crate) purged: Option<u64>,
    pub(crate) last: u64,
    /// Index and term of the entries that can be read.
    pub(crate) entries: Vec<(u64, u64)>,
}

/// A server's life since its disk was last checked.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub(crate) created: bool,
    /// The log when it was last checked.
    pub(crate) base: View,
    /// The steps since then.
    pub(crate) steps: Vec<Step>,
    /// How many of them are acknowledged: one that is covers those before it.
    pub(crate) acked: usize,
    /// The tables hold at least this.
    pub(crate) flushed: u64,
}

impl History {
    /// Reads the lines that the writers wrote. Other lines are libtest's.
    pub(crate) fn parse(lines: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let mut history = Self::default();
        for line in lines {
            history.line(line.as_ref());
        }
        history
    }

    fn line(&mut self, line: &str) {
        if line == "created" {
            self.created = true;
        } else if let Some(rest) = line.strip_prefix("base ") {
            *self = Self::parse_base(rest);
        } else if let Some(rest) = line.strip_prefix("op ") {
            let (number, step) = rest.split_once(' ').unwrap();
            self.steps.push(Step::parse(step));
            assert_eq!(number.parse::<usize>().unwrap(), self.steps.len(), "a step is missing");
        } else if let Some(rest) = line.strip_prefix("ack ") {
            let (number, flushed) = rest.split_once(' ').unwrap();
            self.acked = self.acked.max(number.parse().unwrap());
            self.flushed = self.flushed.max(flushed.parse().unwrap());
        }
    }

    /// The line that [`Self::parse_base`] reads: terms as runs.
    pub(crate) fn base_line(view: &View, flushed: u64) -> String {
        let purged = view.purged.map_or("-".to_owned(), |index| index.to_string());
        let mut runs: Vec<(u64, u64, u64)> = Vec::new();
        for (&index, &term) in &view.terms {
            match runs.last_mut() {
                Some((_, to, of)) if *to + 1 == index && *of == term => *to = index,
                _ => runs.push((index, index, term)),
            }
        }
        let runs: Vec<String> = runs.iter().map(|(from, to, term)| format!("{from},{to},{term}")).collect();
        format!("base {} {purged} {} {flushed} {}", view.vote, view.last, runs.join(";"))
    }

    fn parse_base(line: &str) -> Self {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |word: &str| word.parse::<u64>().unwrap();
        let mut terms = BTreeMap::new();
        for run in words[4].split(';') {
            let run: Vec<u64> = run.split(',').map(number).collect();
            terms.extend((run[0]..=run[1]).map(|index| (index, run[2])));
        }
        let purged = (words[1] != "-").then(|| number(words[1]));
        let base = View { vote: number(words[0]), purged, last: number(words[2]), terms };
        Self { created: true, base, flushed: number(words[3]), ..Self::default() }
    }

    /// The log after all steps.
    pub(crate) fn end(&self) -> View {
        let mut view = self.base.clone();
        self.steps.iter().for_each(|&step| view.apply(step));
        view
    }

    /// Finds how far the steps got, by the log that is there.
    pub(crate) fn explain(&self, found: &Found) -> Result<View, String> {
        let mut view = self.base.clone();
        if self.acked == 0 && view.is(found) {
            return Ok(view);
        }
        for (number, &step) in (1..).zip(&self.steps) {
            if let Step::Write { term, from, to } = step {
                // The batch is not one record: a part of it may be there.
                for index in from..=to {
                    view.push(term, index);
                    if number > self.acked && view.is(found) {
                        return Ok(view);
                    }
                }
            } else {
                view.apply(step);
            }
            if number >= self.acked && view.is(found) {
                return Ok(view);
            }
        }
        Err(format!(
            "no point between the last acknowledged step ({}) and the last one begun ({}) left this log:\n\
             found: vote {}, purged {:?}, last {}, entries {:?}..\nacknowledged: {:?}\nlast steps: {:?}",
            self.acked,
            self.steps.len(),
            found.vote,
            found.purged,
            found.last,
            found.entries.first(),
            self.steps[..self.acked].iter().rev().take(5).collect::<Vec<_>>(),
            self.steps.iter().rev().take(12).collect::<Vec<_>>(),
        ))
    }
}
