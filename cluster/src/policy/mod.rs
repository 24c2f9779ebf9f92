//! What is to be done with the membership, and why: a pure function of what a replication manager sees.
//!
//! - A plan has at most one change of the membership. It names the membership that it was made for, so of two managers
//!   with the same plan one is refused.
//! - A member is dead when the view says so *and* the primary has lost contact, both for the stabilisation time. Either
//!   alone moves nothing.
//! - No change leaves fewer live voters than its quorum (invariant 8), nor fewer voters than a majority of the target size
//!   (the floor).
//! - Replacing comes before shrinking, and is one change: {1,2,3} becomes {1,2,4}, never {1,2,3,4} or {1,2} on the way.
//! - The witness votes while there are two data voters or fewer, and keeps no leadership.
//!
//! The rules are tried in the order in which [`plan`] has them. Each that wants something and may not have it says what
//! it waits for.

#[cfg(test)]
mod histories;
#[cfg(test)]
mod model;
mod observe;
#[cfg(test)]
mod tests;

pub use observe::{Lasting, Look, Observer};

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use quorate_storage::raft_types::NodeId;

/// The cluster's settings, as far as the policy asks for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How many data servers are to vote.
    pub target_size: usize,
    /// For so long a member is to be dead, or steady, before anything is changed for it.
    pub stabilization: Duration,
    /// Whether dead servers are to be launched again.
    pub relaunch: bool,
}

impl From<Option<&quorate_storage::machine::Settings>> for Settings {
    /// The defaults while nobody tells them.
    fn from(settings: Option<&quorate_storage::machine::Settings>) -> Self {
        let defaults = quorate_storage::machine::Settings::default();
        let settings = settings.unwrap_or(&defaults);
        Self {
            target_size: settings.target_size(),
            stabilization: settings.stabilization(),
            relaunch: settings.relaunch(),
        }
    }
}

/// What a manager sees of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The settings.
    pub settings: Settings,
    /// Whether the view can be had, and is fresh.
    pub view: bool,
    /// The primary's node id, if one is known.
    pub primary: Option<NodeId>,
    /// A change is half done.
    pub joint: bool,
    /// By node id.
    pub members: Vec<Member>,
    /// Servers in the view that are down, and what they are launched with.
    pub down: Vec<Down>,
    /// Servers that were removed and still run: they ask the primary what has become of them.
    pub strays: Vec<String>,
    /// Changes that were refused a moment ago, and why: others go before them.
    pub refused: Vec<(Change, String)>,
}

/// One member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its node id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// It serves no clients, and votes only when it must.
    pub witness: bool,
    /// It votes.
    pub voter: bool,
    /// For how long the view has it dead.
    pub view_dead: Option<Duration>,
    /// For how long the primary has not heard of it.
    pub silent: Option<Duration>,
    /// For how long it has been ready and caught up.
    pub steady: Option<Duration>,
}

/// A server whose process is down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Down {
    /// Its name.
    pub name: String,
    /// The launch that has ended.
    pub incarnation: u64,
    /// Somebody wants it to stay down.
    pub held: bool,
}

/// A change of the membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Finish the change that a primary left half done.
    Finish,
    /// A removed server becomes a learner again.
    TakeBack {
        /// Its name.
        name: String,
    },
    /// A voter goes, and a learner votes in its place.
    Replace {
        /// The voter.
        old: NodeId,
        /// The learner.
        new: NodeId,
    },
    /// A learner becomes a voter.
    Promote {
        /// The learner.
        new: NodeId,
    },
    /// A voter becomes a learner.
    Demote {
        /// The voter.
        old: NodeId,
    },
    /// A member goes.
    Remove {
        /// The member.
        old: NodeId,
    },
    /// Leadership moves.
    Transfer {
        /// To this voter.
        to: NodeId,
    },
}

/// What is to be done now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Servers to launch again. That changes no membership and waits for nothing.
    pub launch: Vec<Down>,
    /// The next change of the membership, and why.
    pub change: Option<(Change, String)>,
    /// What is wanted and cannot be done yet, and what it waits for.
    pub waits: Vec<String>,
    /// What a person wants so, and nobody here changes.
    pub notes: Vec<String>,
}

/// What is to be done now.
pub fn plan(seen: &Seen) -> Plan {
    let down = seen.down.iter().filter(|down| seen.settings.relaunch && !down.held);
    let mut plan = Plan { launch: down.cloned().collect(), ..Plan::default() };
    for down in seen.down.iter().filter(|down| down.held) {
        plan.notes.push(format!("{} is held down: nobody launches it until a person says so", down.name));
    }
    let Some(primary) = seen.primary else {
        plan.waits.push("no primary is known: the membership cannot be changed".to_owned());
        return plan;
    };
    if seen.joint {
        let why = "a primary left this change half done; until it is finished, two majorities are needed";
        match seen.refused.iter().find(|(refused, _)| *refused == Change::Finish) {
            None => plan.change = Some((Change::Finish, why.to_owned())),
            Some((_, cause)) => plan.waits.push(format!("{why}; that was refused a moment ago: {cause}")),
        }
        return plan;
    }
    if !seen.view {
        plan.waits.push("the view cannot be had: nobody is taken for dead without it".to_owned());
    }
    let rules = [replace_dead, forget_dead, lead_without_witness, spare_witness, fill, shrink, take_back];
    let mut turn = Turn { seen, primary, waits: Vec::new() };
    plan.change = rules.iter().find_map(|rule| {
        let (change, why) = rule(&mut turn)?;
        let Some((_, cause)) = seen.refused.iter().find(|(refused, _)| *refused == change) else {
            return Some((change, why));
        };
        turn.waits.push(format!("{}, which was refused a moment ago: {cause}", seen.describe(&change)));
        None
    });
    plan.waits.append(&mut turn.waits);
    let (data, target) = (turn.data_voters(), seen.settings.target_size);
    let spare = seen.members.iter().any(|member| !member.voter && !member.witness);
    if data < target && !spare && plan.change.is_none() {
        plan.notes.push(format!("{data} of {target} data servers vote, and no further one is there"));
    }
    plan
}

/// One look at the cluster, while the rules are tried.
struct Turn<'a> {
    seen: &'a Seen,
    primary: NodeId,
    waits: Vec<String>,
}

type Decision = Option<(Change, String)>;

impl<'a> Turn<'a> {
    fn voters(&self) -> impl Iterator<Item = &'a Member> + use<'a> {
        self.seen.members.iter().filter(|member| member.voter)
    }

    fn data_voters(&self) -> usize {
        self.voters().filter(|member| !member.witness).count()
    }

    fn floor(&self) -> usize {
        majority(self.seen.settings.target_size)
    }

    /// For how long both the view and the primary have had it dead. What a wiped server was before is dead whatever
    /// the view says, which knows names and no nodes.
    fn dead_for(&self, member: &Member) -> Option<Duration> {
        if self.newer(member).is_some() {
            return member.silent;
        }
        if !self.seen.view || member.id == self.primary {
            return None;
        }
        Some(member.view_dead?.min(member.silent?))
    }

    /// What a member is now that was wiped.
    fn newer(&self, old: &Member) -> Option<&'a Member> {
        self.seen.members.iter().find(|member| member.name == old.name && member.id > old.id)
    }

    /// Dead for so long that something is to be done.
    fn dead(&self, member: &Member) -> bool {
        self.dead_for(member).is_some_and(|time| time >= self.seen.settings.stabilization)
    }

    /// A learner that can be made a voter. The one that has been steady for longest, for it is the least likely to go.
    fn candidate(&self, witness: bool) -> Option<&'a Member> {
        let learners = self.seen.members.iter().filter(|member| !member.voter && member.witness == witness);
        let steady = learners.filter(|member| self.steady(member));
        steady.max_by_key(|member| (member.steady, std::cmp::Reverse(member.id)))
    }

    fn steady(&self, member: &Member) -> bool {
        member.silent.is_none()
            && member.view_dead.is_none()
            && member.steady.is_some_and(|time| time >= self.seen.settings.stabilization)
    }

    /// Says what keeps the learners, or the witness, from voting.
    fn wait_for_learners(&mut self, witness: bool) {
        for learner in self.seen.members.iter().filter(|member| !member.voter && member.witness == witness) {
            let state = match (learner.silent, learner.steady) {
                (Some(_), _) => "the primary does not hear of it".to_owned(),
                (None, None) => "it is to catch up first".to_owned(),
                (None, Some(time)) => {
                    format!("steady for {}s of {:.0?}", time.as_secs(), self.seen.settings.stabilization)
                }
            };
            self.waits.push(format!("promoting {learner}: {state}"));
        }
    }

    /// Whether the voters after a change could go on: enough of them live, as far as the view and the primary know, and
    /// there are not too few. If not, it is said what is missing.
    fn allowed(&mut self, what: &str, without: Option<NodeId>, with: Option<NodeId>) -> bool {
        let ids: BTreeSet<NodeId> =
            self.voters().map(|member| member.id).filter(|id| Some(*id) != without).chain(with).collect();
        let live = |id: &&NodeId| {
            let member = self.seen.members.iter().find(|member| member.id == **id);
            member.is_some_and(|member| member.silent.is_none() && member.view_dead.is_none())
        };
        let (live, quorum, floor) = (ids.iter().filter(live).count(), majority(ids.len()), self.floor());
        if live < quorum {
            self.waits.push(format!(
                "{what}: of {} voters {live} would be live, and {quorum} are needed",
                ids.len()
            ));
            return false;
        }
        // What was below the floor before, at the beginning, may grow.
        if ids.len() < floor && ids.len() < self.voters().count() {
            self.waits.push(format!("{what}: {} voters would be left, and the floor is {floor}", ids.len()));
            return false;
        }
        true
    }
}

fn majority(of: usize) -> usize {
    of / 2 + 1
}

/// A dead voter is replaced by a learner, by the witness, or removed.
fn replace_dead(turn: &mut Turn<'_>) -> Decision {
    let seen = turn.seen;
    for member in turn.voters().filter(|member| !turn.dead(member)).collect::<Vec<_>>() {
        let why = match (member.view_dead, member.silent) {
            _ if turn.newer(member).is_some() => {
                format!("{member} was wiped, and its place is kept for a while")
            }
            (Some(_), Some(_)) if seen.view => {
                let time = turn.dead_for(member).unwrap_or_default();
                let wanted = seen.settings.stabilization;
                format!(
                    "{member} has been dead for {}s: after {wanted:.0?} something is done about it",
                    time.as_secs()
                )
            }
            (Some(_), None) if seen.view => {
                format!("{member} is dead in the view, but the primary hears of it")
            }
            (None, Some(_)) if seen.view => {
                format!("the primary does not hear of {member}, but in the view it is alive")
            }
            _ => continue,
        };
        turn.waits.push(why);
    }
    let dead = turn.voters().find(|member| turn.dead(member))?;
    let why = match turn.newer(dead) {
        Some(newer) => format!("{dead} was wiped: it is {newer} now"),
        None => format!("{dead} is dead, by the view and by the primary"),
    };
    // The witness's place is another data server's only when those are too few, which `fill` sees to.
    let spare = turn.candidate(false).filter(|_| !dead.witness);
    // And the witness is for the last two data servers, or for the floor.
    let left = turn.data_voters().saturating_sub(1);
    let needed = left <= 2 || turn.voters().count() <= turn.floor();
    let witness = turn.candidate(true).filter(|_| !dead.witness && needed);
    if let Some(new) = spare.or(witness)
        && turn.allowed(&format!("{new} in the place of {dead}"), Some(dead.id), Some(new.id))
    {
        return Some((Change::Replace { old: dead.id, new: new.id }, format!("{why}; {new} has caught up")));
    }
    turn.allowed(&format!("removing {dead}"), Some(dead.id), None)
        .then(|| (Change::Remove { old: dead.id }, format!("{why}, and nobody can take its place")))
}

/// A dead learner, or one whose name a newer node has, goes.
fn forget_dead(turn: &mut Turn<'_>) -> Decision {
    let learners = || turn.seen.members.iter().filter(|member| !member.voter);
    let superseded = learners().filter(|old| old.silent.is_some());
    if let Some((old, new)) =
        superseded.map(|old| (old, turn.newer(old))).find_map(|(old, new)| Some((old, new?)))
    {
        return Some((Change::Remove { old: old.id }, format!("{old} was wiped: it is {new} now")));
    }
    let dead = learners().find(|member| turn.dead(member))?;
    Some((Change::Remove { old: dead.id }, format!("{dead} is dead, by the view and by the primary")))
}

/// The witness leads only as long as nobody else can.
fn lead_without_witness(turn: &mut Turn<'_>) -> Decision {
    let leads = turn.voters().find(|member| member.witness && member.id == turn.primary)?;
    let fit = |member: &&Member| !member.witness && member.silent.is_none() && member.view_dead.is_none();
    let to = turn.voters().filter(|member| fit(member) && member.steady.is_some());
    match to.max_by_key(|member| member.steady) {
        Some(to) => {
            let why = format!("{leads} leads, and a witness serves no clients");
            Some((Change::Transfer { to: to.id }, why))
        }
        None => {
            turn.waits.push(format!("{leads} leads: no data server that votes is live and caught up"));
            None
        }
    }
}

/// The witness votes while there are two data voters or fewer. A third takes its place.
fn spare_witness(turn: &mut Turn<'_>) -> Decision {
    let witness = turn.voters().find(|member| member.witness)?;
    let (data, target) = (turn.data_voters(), turn.seen.settings.target_size);
    // Where the floor needs it, it stays.
    if data >= 3 && turn.voters().count() > turn.floor() || target == 1 {
        let why = format!("{data} of {target} data servers vote, so the witness need not");
        return turn
            .allowed("without the witness", Some(witness.id), None)
            .then_some((Change::Demote { old: witness.id }, why));
    }
    let new = turn.candidate(false).filter(|_| data == 2 && target > data)?;
    let why = format!("{new} has caught up, as the third data server: the witness steps back");
    turn.allowed(&format!("{new} in the place of the witness"), Some(witness.id), Some(new.id))
        .then_some((Change::Replace { old: witness.id, new: new.id }, why))
}

/// Learners become voters up to the target size; the witness when there are two data voters.
fn fill(turn: &mut Turn<'_>) -> Decision {
    let (data, target) = (turn.data_voters(), turn.seen.settings.target_size);
    if data < target {
        if let Some(new) = turn.candidate(false) {
            let why = format!("{new} has caught up, and {data} of {target} data servers vote");
            return turn
                .allowed(&format!("promoting {new}"), None, Some(new.id))
                .then_some((Change::Promote { new: new.id }, why));
        }
        turn.wait_for_learners(false);
    }
    if !(data == 2 && target >= 2 && turn.voters().count() == 2) {
        return None;
    }
    let Some(new) = turn.candidate(true) else {
        turn.wait_for_learners(true);
        return None;
    };
    let why = "two data servers vote: with the witness, either may go".to_owned();
    turn.allowed("promoting the witness", None, Some(new.id))
        .then_some((Change::Promote { new: new.id }, why))
}

/// More data servers vote than are wanted: the newest that does not lead becomes a learner.
fn shrink(turn: &mut Turn<'_>) -> Decision {
    let (data, target) = (turn.data_voters(), turn.seen.settings.target_size);
    let spare = || turn.voters().filter(|member| !member.witness && member.id != turn.primary);
    let old = (data > target).then(spare)?.max_by_key(|member| member.id)?;
    turn.allowed(&format!("demoting {old}"), Some(old.id), None).then(|| {
        (Change::Demote { old: old.id }, format!("{data} data servers vote, and {target} are wanted"))
    })
}

/// A server that was removed, and has come back with its disk, is a learner again.
fn take_back(turn: &mut Turn<'_>) -> Decision {
    // What the primary says of strays may be a moment old.
    let member = |name: &&String| turn.seen.members.iter().any(|member| member.name == **name);
    // One that is down does not come back, whatever it asked before.
    let down = |name: &&String| turn.seen.down.iter().any(|down| down.name == **name);
    let name = turn.seen.strays.iter().find(|name| !member(name) && !down(name))?;
    let why = format!("{name} was removed and is back, with its disk");
    Some((Change::TakeBack { name: name.clone() }, why))
}

impl Plan {
    /// Nothing of the membership is to be changed, and nothing is waited for. Launches do not count: a server that hangs is
    /// wanted to be launched for as long as it does.
    pub fn is_settled(&self) -> bool {
        self.change.is_none() && self.waits.is_empty()
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (node {})", self.name, self.id)
    }
}

impl Seen {
    /// A change in words, with names.
    pub fn describe(&self, change: &Change) -> String {
        let of = |id: &NodeId| {
            let member = self.members.iter().find(|member| member.id == *id);
            member.map_or_else(|| format!("node {id}"), Member::to_string)
        };
        match change {
            Change::Finish => "finish the change that is half done".to_owned(),
            Change::TakeBack { name } => format!("take {name} back"),
            Change::Replace { old, new } => format!("replace {} by {}", of(old), of(new)),
            Change::Promote { new } => format!("promote {}", of(new)),
            Change::Demote { old } => format!("demote {}", of(old)),
            Change::Remove { old } => format!("remove {}", of(old)),
            Change::Transfer { to } => format!("move leadership to {}", of(to)),
        }
    }
}
