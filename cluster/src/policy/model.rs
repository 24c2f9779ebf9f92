//! Every interleaving of two managers, a primary that carries their changes out, crashes, returns and wipes, up to a bound:
//! a model check of policy and executor.
//!
//! A manager looks and decides in one step and sends what it decided in a later one: in between, anything happens, the
//! other manager's changes included. The primary makes a change only if the membership is still the one that was seen, and
//! if enough of the voters-to-be answer it; that is the whole executor. Time is not modelled: whoever is down is taken for
//! dead at once, which is the worst case. Not modelled either: views that are wrong, half-made changes, settings that
//! change, and progress, for a manager may stall for ever ([`super::histories`] has these, but for the half-made ones).
//!
//! Two mishaps are tried; `QUORATE_MISHAPS=3` tries three (2.6 million states, docs/reliability.md).

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_storage::raft_types::NodeId;
use stateright::{Checker as _, Model, Property};

use super::{Change, Member, Seen, Settings, majority, plan};

const WITNESS: u8 = 0;
const SERVERS: u8 = 4;
const MANAGERS: usize = 2;
const TARGET: usize = 3;
const LONG: Duration = Duration::from_secs(3_600);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    /// By server: the node that its disk says it is, if it has one, and whether it runs.
    servers: Vec<(Option<NodeId>, bool)>,
    /// By node: whose it is, and whether it votes.
    members: BTreeMap<NodeId, (u8, bool)>,
    /// Goes up with each change.
    membership: u32,
    next_id: NodeId,
    primary: Option<NodeId>,
    /// What each manager has decided on and not sent yet, and the membership that it saw.
    decided: Vec<Option<(Decided, u32)>>,
    /// Crashes and wipes that may still happen.
    mishaps: u8,
    /// What went wrong, which nothing undoes.
    broken: Option<&'static str>,
}

/// A [`Change`], to be hashed.
type Decided = (u8, NodeId, NodeId);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Crash(u8),
    Wipe(u8),
    Return(u8),
    /// Another voter takes over, as in any election.
    Elect(NodeId),
    Look(usize),
    Send(usize),
}

struct Managers {
    mishaps: u8,
}

impl World {
    fn runs(&self, id: NodeId) -> bool {
        self.members
            .get(&id)
            .is_some_and(|(server, _)| self.servers[usize::from(*server)] == (Some(id), true))
    }

    fn voters(&self) -> Vec<NodeId> {
        self.members.iter().filter(|(_, (_, voter))| *voter).map(|(id, _)| *id).collect()
    }

    fn live(&self, voters: &[NodeId]) -> bool {
        voters.iter().filter(|id| self.runs(**id)).count() >= majority(voters.len())
    }

    /// There is a primary while a majority lives; it stays who it is while it can.
    fn settle(&mut self) {
        let voters = self.voters();
        if !self.live(&voters) {
            self.primary = None;
        } else if !self.primary.is_some_and(|id| voters.contains(&id) && self.runs(id)) {
            self.primary = voters.into_iter().find(|id| self.runs(*id));
        }
        // Whoever runs with an empty disk joins as a learner, under an id that was never used.
        for server in 0..SERVERS {
            if self.primary.is_some() && self.servers[usize::from(server)] == (None, true) {
                self.servers[usize::from(server)].0 = Some(self.next_id);
                self.members.insert(self.next_id, (server, false));
                self.next_id += 1;
            }
        }
    }

    fn seen(&self) -> Seen {
        let member = |(&id, &(server, voter)): (&NodeId, &(u8, bool))| {
            let (runs, dead) = (self.runs(id), !self.servers[usize::from(server)].1);
            Member {
                id,
                name: format!("S{server}"),
                witness: server == WITNESS,
                voter,
                view_dead: dead.then_some(LONG),
                silent: (!runs).then_some(LONG),
                steady: runs.then_some(LONG),
            }
        };
        let stray = |(server, &(node, runs)): (usize, &(Option<NodeId>, bool))| {
            (runs && node.is_some_and(|id| !self.members.contains_key(&id))).then(|| format!("S{server}"))
        };
        Seen {
            settings: Settings { target_size: TARGET, stabilization: Duration::from_secs(5), relaunch: true },
            view: true,
            primary: self.primary,
            joint: false,
            members: self.members.iter().map(member).collect(),
            down: Vec::new(),
            strays: self.servers.iter().enumerate().filter_map(stray).collect(),
            refused: Vec::new(),
        }
    }

    /// The executor: what a primary does with a change that was decided on `membership`.
    fn carry_out(&mut self, change: Decided, membership: u32) {
        if self.primary.is_none() || membership != self.membership {
            return;
        }
        let mut after = self.members.clone();
        match change {
            (0, old, new) => {
                let Some(learner) = after.get_mut(&new) else { return };
                learner.1 = true;
                let (server, _) = after[&old];
                // A witness is to follow on.
                if server == WITNESS {
                    after.insert(old, (server, false))
                } else {
                    after.remove(&old)
                };
            }
            (1, new, _) => after.get_mut(&new).map_or((), |member| member.1 = true),
            (2, old, _) => after.get_mut(&old).map_or((), |member| member.1 = false),
            (3, old, _) => drop(after.remove(&old)),
            (4, to, _) => {
                self.primary = self.runs(to).then_some(to).or(self.primary);
                return;
            }
            (_, server, _) => {
                let server = u8::try_from(server).unwrap_or_default();
                let (Some(id), true) = self.servers[usize::from(server)] else { return };
                after.insert(id, (server, false));
            }
        }
        let before = self.voters();
        let voters: Vec<NodeId> = after.iter().filter(|(_, (_, voter))| *voter).map(|(id, _)| *id).collect();
        // The primary asks them itself.
        if !self.live(&voters) {
            return;
        }
        // It hands leadership over before it gives its own vote up.
        if self.primary.is_some_and(|id| !voters.contains(&id)) {
            self.primary =
                voters.iter().copied().find(|id| self.runs(*id) && before.contains(id)).or(self.primary);
            return;
        }
        let changed = voters.iter().filter(|id| !before.contains(id)).count()
            + before.iter().filter(|id| !voters.contains(id)).count();
        self.members = after;
        self.membership += 1;
        let one_each = |server: u8| {
            self.members.values().filter(|(other, voter)| *other == server && *voter).count() <= 1
        };
        self.broken = match () {
            () if voters.len() < majority(TARGET) => Some("fewer voters than the floor"),
            () if changed > 2 => Some("more than one replacement at a time"),
            () if !(0..SERVERS).all(one_each) => Some("a server has two votes"),
            () => self.broken,
        };
    }
}

fn decided(change: &Change) -> Decided {
    match change {
        Change::Replace { old, new } => (0, *old, *new),
        Change::Promote { new } => (1, *new, 0),
        Change::Demote { old } => (2, *old, 0),
        Change::Remove { old } => (3, *old, 0),
        Change::Transfer { to } => (4, *to, 0),
        Change::TakeBack { name } => (5, name[1..].parse().expect("a server's number"), 0),
        Change::Finish => unreachable!("no change is left half done here"),
    }
}

impl Model for Managers {
    type State = World;
    type Action = Step;

    /// Three data servers vote, a witness follows.
    fn init_states(&self) -> Vec<World> {
        let node = |server: u8| NodeId::from(server) + 1;
        vec![World {
            servers: (0..SERVERS).map(|server| (Some(node(server)), true)).collect(),
            members: (0..SERVERS).map(|server| (node(server), (server, server != WITNESS))).collect(),
            membership: 0,
            next_id: node(SERVERS),
            primary: Some(node(1)),
            decided: vec![None; MANAGERS],
            mishaps: self.mishaps,
            broken: None,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        for server in 0..SERVERS {
            let (node, runs) = world.servers[usize::from(server)];
            if !runs {
                steps.push(Step::Return(server));
            }
            if world.mishaps > 0 && runs {
                steps.push(Step::Crash(server));
            }
            if world.mishaps > 0 && node.is_some() {
                steps.push(Step::Wipe(server));
            }
        }
        let voters = world.voters();
        if world.live(&voters) {
            let others = voters.into_iter().filter(|id| world.runs(*id) && Some(*id) != world.primary);
            steps.extend(others.map(Step::Elect));
        }
        for manager in 0..MANAGERS {
            steps.push(Step::Look(manager));
            if world.decided[manager].is_some() {
                steps.push(Step::Send(manager));
            }
        }
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        match step {
            Step::Crash(server) => {
                world.servers[usize::from(server)].1 = false;
                world.mishaps -= 1;
            }
            Step::Wipe(server) => {
                world.servers[usize::from(server)] = (None, false);
                world.mishaps -= 1;
            }
            Step::Return(server) => world.servers[usize::from(server)].1 = true,
            Step::Elect(id) => world.primary = Some(id),
            Step::Look(manager) => {
                let change = plan(&world.seen()).change;
                world.decided[manager] = change.map(|(change, _)| (decided(&change), world.membership));
            }
            Step::Send(manager) => {
                let (change, membership) = world.decided[manager].take()?;
                let (had, before) = (world.primary.is_some(), world.membership);
                world.carry_out(change, membership);
                if had && world.membership != before && !world.live(&world.voters()) {
                    world.broken = Some("a change took the majority away");
                }
            }
        }
        world.settle();
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no change breaks a rule", |_, world: &World| world.broken.is_none()),
            Property::sometimes("the witness takes a dead server's place", |_, world: &World| {
                world.members.values().any(|member| *member == (WITNESS, true)) && world.primary.is_some()
            }),
            Property::sometimes("a wiped server votes again", |_, world: &World| {
                world.members.iter().any(|(id, (_, voter))| *voter && *id > NodeId::from(SERVERS))
            }),
            Property::sometimes("down to one data server and the witness", |_, world: &World| {
                let voters: Vec<u8> =
                    world.members.values().filter(|(_, voter)| *voter).map(|(s, _)| *s).collect();
                voters.len() == 2 && voters.contains(&WITNESS) && world.primary.is_some()
            }),
            Property::sometimes("all is well again after the last mishap", |_, world: &World| {
                world.mishaps == 0
                    && world.servers.iter().all(|(_, runs)| *runs)
                    && plan(&world.seen()).is_settled()
                    && world.members.len() == usize::from(SERVERS)
            }),
        ]
    }
}

#[test]
#[allow(clippy::print_stdout, reason = "the number of states is a result")]
fn two_managers_do_no_harm() {
    let mishaps = std::env::var("QUORATE_MISHAPS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let checker = Managers { mishaps }.checker().threads(2).spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
}
