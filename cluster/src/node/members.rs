//! Changes of the membership, by hand.
//!
//! Each is one change, with a compare-and-set and a time limit; what timed out is unknown. One that was left half
//! done is finished first. None leaves fewer live voters than its quorum, as far as the primary's own contacts tell
//! (invariant 8).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::reconfigure::{CHANGE_TIMEOUT, changed};
use super::{Inner, Node};
use crate::error::{Attempt, Code, NodeError};
use crate::message::{MemberOp, MembersReply, MembersRequest, Reply, Request};
use crate::transport::lane::CallError;
use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{ChangeMembers, Instant as _};
use quorate_storage::codec;
use quorate_storage::delta::{Command, DeltaResult, SYSTEM_SERVICE};
use quorate_storage::machine::{SystemCommand, SystemReply};
use quorate_storage::raft_types::{LogId, NodeId, NodeInfo, log_id, term_of};

/// How long a promotion waits for its learner to catch up.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(20);
/// And how long for one that does not answer at all: it may just be starting.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a change looks for a primary that takes it: longer than an election.
const PRIMARY_TIMEOUT: Duration = Duration::from_secs(3);
/// A learner that lacks fewer entries than this is caught up.
pub const CAUGHT_UP: u64 = 256;
pub(super) const POLL: Duration = Duration::from_millis(20);

type Result<T> = std::result::Result<T, NodeError>;

impl Node {
    /// Changes the membership, through whichever server is the primary.
    ///
    /// # Errors
    /// [`NodeError`]; `attempt` says whether the change may have been made.
    pub async fn change_members(&self, request: MembersRequest, deadline: Instant) -> Result<MembersReply> {
        let inner = &self.inner;
        let mut searching = Instant::now();
        loop {
            let asked = Instant::now();
            if let Some(removed) = inner.removed_error() {
                return Err(removed);
            }
            let result = match inner.leader() {
                None => Err(inner.no_primary()),
                Some(id) if id == inner.id => inner.change(&request).await,
                Some(id) => inner.ask_primary(id, &request, deadline).await,
            };
            if asked.elapsed() > PRIMARY_TIMEOUT {
                // A primary worked on it until it had to go.
                searching = Instant::now();
            }
            match result {
                Err(e)
                    if e.attempt == Attempt::NotApplied
                        && matches!(e.code, Code::NotPrimary | Code::NoPrimary)
                        && Instant::now() + POLL < deadline.min(searching + PRIMARY_TIMEOUT) =>
                {
                    inner.leader_may_change(POLL).await;
                }
                result => return result,
            }
        }
    }

    /// Sets a setting of the cluster.
    ///
    /// # Errors
    /// [`NodeError`].
    pub async fn set(&self, name: &str, value: &str, deadline: Instant) -> Result<()> {
        let command = SystemCommand::Set { name: name.to_owned(), value: value.to_owned() };
        let command = Command::sessionless(SYSTEM_SERVICE, codec::encode(&command));
        match self.propose(command, deadline).await?.result {
            DeltaResult::Reply(_) => Ok(()),
            DeltaResult::Refused(refusal) => Err(NodeError::not_applied(Code::BadRequest, refusal.detail)),
            other => Err(NodeError::unknown(Code::Failed, format!("unexpected: {other:?}"))),
        }
    }
}

/// `term-index`, as the API shows a membership's log id.
pub(super) fn show_log_id(id: Option<&LogId>) -> String {
    id.map_or_else(|| "0-0".to_owned(), |id| format!("{}-{}", term_of(id), id.index))
}

fn parse_log_id(text: &str) -> Option<LogId> {
    let (term, index) = text.split_once('-')?;
    Some(log_id(term.parse().ok()?, index.parse().ok()?))
}

impl Inner {
    async fn ask_primary(
        &self,
        id: NodeId,
        request: &MembersRequest,
        deadline: Instant,
    ) -> Result<MembersReply> {
        let Some(info) = self.member(id) else {
            return Err(self.no_primary());
        };
        let limit = deadline.saturating_duration_since(Instant::now());
        match self.lanes.to(id, &info).call(&Request::Members(request.clone()), limit).await {
            Ok(Reply::Members(reply)) => Ok(reply),
            Ok(_) => Err(NodeError::unknown(Code::Failed, "the primary answered another question")),
            Err(CallError::Peer(e)) => Err(e),
            Err(e) if e.not_sent() => Err(NodeError::not_applied(Code::NoPrimary, e.to_string())),
            Err(e) => Err(NodeError::unknown(
                Code::Timeout,
                format!("{e}. The change may have been made: look at `quorate cluster members`"),
            )),
        }
    }

    /// All members, voters and learners.
    pub(super) fn members(&self) -> BTreeMap<NodeId, NodeInfo> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        membership.nodes().map(|(id, info)| (*id, info.clone())).collect()
    }

    pub(super) fn voters(&self) -> BTreeSet<NodeId> {
        self.raft.metrics().borrow_watched().membership_config.membership().voter_ids().collect()
    }

    /// The members called `name`: after a wipe there may be an old and a new one.
    pub(super) fn named(&self, name: &str) -> BTreeSet<NodeId> {
        self.members().into_iter().filter(|(_, info)| info.name == name).map(|(id, _)| id).collect()
    }

    /// Whether this primary heard of `id` lately.
    pub(super) fn alive(&self, id: NodeId) -> bool {
        let recent = self.recent();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let heard = metrics.heartbeat.as_ref().and_then(|heard| heard.get(&id).copied().flatten());
        id == self.id || heard.is_some_and(|at| at.elapsed() < recent)
    }

    /// A name, and an address, belong to one live server.
    pub(super) fn check_name_free(&self, info: &NodeInfo, id: NodeId) -> Result<()> {
        for (other, known) in self.members() {
            let clash = known.name == info.name || known.peer == info.peer;
            if other != id && clash && self.alive(other) {
                let text = format!(
                    "{} at {} (node {other}) is a live member already; give the new server another name and address, or \
                     stop that one first",
                    known.name, known.peer
                );
                return Err(NodeError::not_applied(Code::Refused, text));
            }
        }
        Ok(())
    }

    pub(super) async fn allocate_node_id(&self, name: &str) -> Result<NodeId> {
        let command = SystemCommand::AllocateNodeId { name: name.to_owned() };
        let command = Command::sessionless(SYSTEM_SERVICE, codec::encode(&command));
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        let outcomes = self.propose_once(Arc::new(vec![command]), deadline, true).await?;
        let reply = outcomes.into_iter().next().map(|outcome| outcome.result);
        match reply {
            Some(DeltaResult::Reply(reply)) => match codec::decode(&reply) {
                Ok(SystemReply::NodeId(id)) => Ok(id),
                other => Err(NodeError::unknown(Code::Failed, format!("unexpected: {other:?}"))),
            },
            other => Err(NodeError::unknown(Code::Failed, format!("unexpected: {other:?}"))),
        }
    }

    /// Carries one operation out. On the primary. What it decides on is the membership that it saw: if another change
    /// comes in between, it decides anew, unless its caller named the membership.
    pub(super) async fn change(&self, request: &MembersRequest) -> Result<MembersReply> {
        let expected = match &request.if_membership {
            None => None,
            Some(text) => Some(parse_log_id(text).ok_or_else(|| {
                let text = format!(
                    "if_membership {text:?} is not a membership's log id; `quorate cluster members` shows it"
                );
                NodeError::not_applied(Code::BadRequest, text)
            })?),
        };
        let begun = Instant::now();
        loop {
            let Some(seen) = *self.raft.metrics().borrow_watched().membership_config.log_id() else {
                return Err(self.no_primary());
            };
            if expected.is_some_and(|expected| expected != seen) {
                return Err(changed(Some(seen)));
            }
            if let Some(revision) = request.if_settings {
                self.check_settings(revision)?;
            }
            match self.change_seen(request, seen).await {
                Ok(()) => return Ok(self.members_reply()),
                Err(e)
                    if e.code == Code::Changed
                        && e.attempt == Attempt::NotApplied
                        && expected.is_none()
                        && begun.elapsed() < CHANGE_TIMEOUT =>
                {
                    tokio::time::sleep(POLL).await;
                }
                Err(e) => return Err(e),
            }
        }
    }

    async fn change_seen(&self, request: &MembersRequest, seen: LogId) -> Result<()> {
        let name = &request.name;
        if request.op == MemberOp::Transfer {
            return self.transfer(name).await;
        }
        let seen = self.finish_half_done(seen).await?;
        match request.op {
            MemberOp::Promote => self.promote(request, seen).await,
            MemberOp::Demote => self.demote(request, seen).await,
            MemberOp::Remove => self.remove(request, seen).await,
            MemberOp::Replace => self.replace(request, seen).await,
            MemberOp::TakeBack => self.take_back(name, seen).await.map(drop),
            MemberOp::Finish | MemberOp::Transfer => Ok(()),
        }
    }

    fn check_settings(&self, revision: u64) -> Result<()> {
        let now = self.settings()?.revision;
        if now == revision {
            return Ok(());
        }
        let text = format!(
            "the settings are not those of revision {revision}, but of {now}: look again and decide anew"
        );
        Err(NodeError::not_applied(Code::Changed, text))
    }

    /// The members that a request means: all of the name, or the one node that it names.
    fn meant(&self, request: &MembersRequest) -> BTreeSet<NodeId> {
        let mut named = self.named(&request.name);
        named.retain(|id| request.node.is_none_or(|node| node == *id));
        named
    }

    /// A learner votes in the place of a voter, in one change. Its promotion alone would leave an even number of voters, and
    /// the removal alone one too few.
    async fn replace(&self, request: &MembersRequest, seen: LogId) -> Result<()> {
        let mut voters = self.voters();
        let members = self.members();
        let Some(old) = self.meant(request).into_iter().find(|id| voters.contains(id)) else {
            return Err(self.not_found(&request.name));
        };
        let Some((by, info)) = request.by.and_then(|by| Some((by, members.get(&by)?))) else {
            let text = "a replacement names the learner that is to vote, by its node id (`by`)";
            return Err(NodeError::not_applied(Code::BadRequest, text));
        };
        if voters.contains(&by) {
            let text = format!("{} (node {by}) votes already: a replacement is made by a learner", info.name);
            return Err(NodeError::not_applied(Code::BadRequest, text));
        }
        // Decided when it was away, it is no reason any more when it is back before the learner has caught up.
        let was_away = !self.alive(old);
        self.caught_up(by, &info.name).await?;
        if was_away && self.alive(old) {
            let text = format!("{} is back meanwhile: look again and decide anew", request.name);
            return Err(NodeError::not_applied(Code::Changed, text));
        }
        voters.remove(&old);
        voters.insert(by);
        self.check_quorum(&voters).await?;
        self.leave_leadership(&BTreeSet::from([old])).await?;
        // A witness is to follow on.
        let stays = members.get(&old).is_some_and(|info| info.witness);
        self.submit(ChangeMembers::ReplaceAllVoters(voters), stays, Some(seen)).await?;
        self.part_from(members);
        Ok(())
    }

    /// After a change: forgets, and tells, those of the members `before` it that are none any more.
    fn part_from(&self, before: BTreeMap<NodeId, NodeInfo>) {
        let members = self.members();
        self.lanes.retain(|id| members.contains_key(id));
        self.tell_removed(before.into_iter().filter(|(id, _)| !members.contains_key(id)));
    }

    pub(super) fn members_reply(&self) -> MembersReply {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let config = &metrics.membership_config;
        let name =
            |id: NodeId| config.membership().get_node(&id).map_or_else(|| id.to_string(), |i| i.name.clone());
        MembersReply {
            membership: show_log_id(config.log_id().as_ref()),
            voters: config.membership().voter_ids().map(name).collect(),
            learners: config.membership().learner_ids().map(name).collect(),
            primary: metrics.current_leader.map(name),
        }
    }

    pub(super) fn not_found(&self, name: &str) -> NodeError {
        let names: Vec<String> = self.members().into_values().map(|info| info.name).collect();
        let text = format!("no member is called {name:?}; there are: {}", names.join(", "));
        NodeError::not_applied(Code::NotFound, text)
    }

    async fn promote(&self, request: &MembersRequest, mut seen: LogId) -> Result<()> {
        let name = &request.name;
        if self.named(name).is_empty() {
            seen = self.take_back(name, seen).await?;
        }
        let named = self.meant(request);
        let mut voters = self.voters();
        // A wiped server comes back under a new, higher id.
        let Some(&id) = named.iter().next_back() else {
            return Err(self.not_found(name));
        };
        if voters.contains(&id) {
            return Ok(());
        }
        self.caught_up(id, name).await?;
        voters.retain(|voter| !named.contains(voter));
        voters.insert(id);
        self.check_quorum(&voters).await?;
        self.submit(ChangeMembers::ReplaceAllVoters(voters), false, Some(seen)).await.map(drop)
    }

    async fn demote(&self, request: &MembersRequest, seen: LogId) -> Result<()> {
        let (name, named) = (&request.name, self.meant(request));
        if named.is_empty() {
            return Err(self.not_found(name));
        }
        let mut voters = self.voters();
        let before = voters.len();
        voters.retain(|voter| !named.contains(voter));
        if voters.len() == before {
            return Ok(());
        }
        self.check_leaves(name, &voters).await?;
        self.leave_leadership(&named).await?;
        self.submit(ChangeMembers::ReplaceAllVoters(voters), true, Some(seen)).await.map(drop)
    }

    async fn remove(&self, request: &MembersRequest, mut seen: LogId) -> Result<()> {
        let (name, named) = (&request.name, self.meant(request));
        if named.is_empty() {
            return Err(self.not_found(name));
        }
        let before_it = self.members();
        let mut voters = self.voters();
        let before = voters.len();
        voters.retain(|voter| !named.contains(voter));
        let voted = voters.len() < before;
        if voted {
            self.check_leaves(name, &voters).await?;
            self.leave_leadership(&named).await?;
            seen = self.submit(ChangeMembers::ReplaceAllVoters(voters), false, Some(seen)).await?;
        }
        let learners = self.meant(request);
        if !learners.is_empty() {
            let removed = self.submit(ChangeMembers::RemoveNodes(learners), false, Some(seen)).await;
            removed.map_err(|e| if voted { e.after_a_part() } else { e })?;
        }
        self.part_from(before_it);
        Ok(())
    }

    /// Sends word to who was removed, so that it need not find out by missing the primary. One attempt, that nobody waits
    /// for: whom it does not reach finds out.
    fn tell_removed(&self, removed: impl Iterator<Item = (NodeId, NodeInfo)>) {
        for (id, info) in removed {
            let lane = self.lanes.dial_anew(id, info.peer);
            tokio::spawn(async move {
                if let Err(error) = lane.call(&Request::Removed, ANSWER_TIMEOUT).await {
                    tracing::debug!(node_id = id, %error, "a removed server was not told");
                }
            });
        }
    }

    async fn check_leaves(&self, name: &str, voters: &BTreeSet<NodeId>) -> Result<()> {
        if voters.is_empty() {
            let text = format!("{name} is the only voter; promote another server first");
            return Err(NodeError::not_applied(Code::Refused, text));
        }
        self.check_quorum(voters).await
    }

    /// Invariant 8, for the voters that are to be. They are asked: heartbeats tell of the past, and a primary that is
    /// new has heard of nobody yet.
    pub(super) async fn check_quorum(&self, voters: &BTreeSet<NodeId>) -> Result<()> {
        let members = self.members();
        let asked = members.iter().filter(|(id, _)| voters.contains(id));
        let answers = join_all(asked.map(|(id, info)| self.ask_status(*id, info))).await;
        let live = answers.iter().flatten().count();
        let quorum = voters.len() / 2 + 1;
        if live >= quorum {
            return Ok(());
        }
        let text = format!(
            "of the {} voters that there would be, only {live} answer, and {quorum} are needed: the cluster would stop. \
             Bring servers back first",
            voters.len()
        );
        Err(NodeError::not_applied(Code::Refused, text))
    }

    async fn caught_up(&self, id: NodeId, name: &str) -> Result<()> {
        let answer_by = Instant::now() + ANSWER_TIMEOUT;
        let deadline = Instant::now() + CATCH_UP_TIMEOUT;
        loop {
            let lag = {
                let metrics = self.raft.metrics();
                let metrics = metrics.borrow_watched();
                let matched = metrics.replication.as_ref().and_then(|r| r.get(&id).cloned().flatten());
                let last = metrics.last_log_index.unwrap_or(0);
                matched.map(|matched| last.saturating_sub(matched.index))
            };
            if !self.is_leader() {
                return Err(self.not_primary());
            }
            // One that died may have had everything: it is asked, whatever was heard of it lately.
            let alive = match self.member(id) {
                Some(info) => self.ask_status(id, &info).await.is_some(),
                None => return Err(self.not_found(name)),
            };
            match lag {
                Some(lag) if lag <= CAUGHT_UP && alive => return Ok(()),
                lag if Instant::now() >= if alive { deadline } else { answer_by } => {
                    let lag = lag.map_or("everything".to_owned(), |lag| format!("{lag} entries"));
                    let text = match alive {
                        true => format!("{name} has not caught up (it lacks {lag}). Try again later"),
                        false => {
                            format!("{name} does not answer (it lacks {lag}); is it running? Start it first")
                        }
                    };
                    return Err(NodeError::not_applied(Code::Refused, text).retry_after(1000));
                }
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }
}
