//! Random histories of crashes, returns, wipes, partitions and blind views, on a model of a cluster: whatever happens, the
//! plan's changes are safe; and when it is over, everything is as it should be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use quorate_storage::raft_types::NodeId;

use super::observe::Look;
use super::{Change, Down, Member, Observer, Seen, Settings, majority, plan};

const WITNESS: usize = 0;
const SERVERS: usize = 6;
const STABILIZATION: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy)]
enum Event {
    Crash(usize),
    Return(usize),
    Wipe(usize),
    /// The view has it dead, though it runs.
    Blind(usize, bool),
    /// The primary does not reach it, though it runs.
    Cut(usize, bool),
    ViewAway(bool),
    Target(usize),
    ManagerAgain,
    Seconds(u8),
}

/// A server: the node that its disk says it is, whether it runs, and who can see that.
#[derive(Debug, Clone, Copy)]
struct Server {
    node: Option<NodeId>,
    runs: bool,
    blind: bool,
    cut: bool,
}

struct World {
    servers: [Server; SERVERS],
    /// Whose server a member is, and whether it votes.
    members: BTreeMap<NodeId, (usize, bool)>,
    next_id: NodeId,
    primary: Option<NodeId>,
    view_away: bool,
    target: usize,
    observer: Observer,
    now: Instant,
}

impl World {
    /// All data servers vote, and a witness follows.
    fn new() -> Self {
        let server = |n: usize| Server { node: Some(n as NodeId + 1), runs: true, blind: false, cut: false };
        Self {
            servers: std::array::from_fn(server),
            members: (0..SERVERS).map(|n| (n as NodeId + 1, (n, n != WITNESS))).collect(),
            next_id: SERVERS as NodeId + 1,
            primary: None,
            view_away: false,
            target: SERVERS - 1,
            observer: Observer::default(),
            now: Instant::now(),
        }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Crash(n) => self.servers[n].runs = false,
            Event::Return(n) => self.servers[n].runs = true,
            Event::Wipe(n) => (self.servers[n].runs, self.servers[n].node) = (false, None),
            Event::Blind(n, blind) => self.servers[n].blind = blind,
            Event::Cut(n, cut) => self.servers[n].cut = cut,
            Event::ViewAway(away) => self.view_away = away,
            Event::Target(target) => self.target = target,
            Event::ManagerAgain => self.observer = Observer::default(),
            Event::Seconds(seconds) => (0..seconds).for_each(|_| self.second()),
        }
    }

    /// Runs as this node: what answers in its place after a wipe is another.
    fn runs(&self, id: NodeId) -> bool {
        let (server, _) = self.members[&id];
        self.servers[server].runs && self.servers[server].node == Some(id)
    }

    fn reached(&self, id: NodeId) -> bool {
        self.runs(id) && (self.primary == Some(id) || !self.servers[self.members[&id].0].cut)
    }

    fn voters(&self) -> BTreeSet<NodeId> {
        self.members.iter().filter(|(_, (_, voter))| *voter).map(|(id, _)| *id).collect()
    }

    /// A primary stays while a majority reaches it; else any voter that is not cut off may become it.
    fn elect(&mut self) {
        let voters = self.voters();
        let reached = |world: &Self| voters.iter().filter(|id| world.reached(**id)).count();
        let keeps = self.primary.is_some_and(|id| voters.contains(&id) && self.runs(id));
        if keeps && reached(self) >= majority(voters.len()) {
            return;
        }
        self.primary = None;
        if reached(self) >= majority(voters.len()) {
            self.primary = voters.into_iter().find(|id| self.reached(*id));
        }
    }

    fn second(&mut self) {
        self.now += Duration::from_secs(1);
        self.elect();
        self.join();
        let seen = self.seen();
        if let Some((change, why)) = plan(&seen).change {
            self.carry_out(&change, &format!("{}: {why}", seen.describe(&change)));
        }
    }

    /// Wiped servers that run join as learners, under ids that were never used.
    fn join(&mut self) {
        for n in 0..SERVERS {
            let server = &mut self.servers[n];
            if self.primary.is_some() && server.runs && !server.cut && server.node.is_none() {
                server.node = Some(self.next_id);
                assert!(self.members.insert(self.next_id, (n, false)).is_none(), "an id was used twice");
                self.next_id += 1;
            }
        }
    }

    fn seen(&mut self) -> Seen {
        let looks = self.members.iter().map(|(&id, &(server, _))| {
            let state = self.servers[server];
            let view_dead = !self.view_away && (!state.runs || state.blind);
            let reached = self.reached(id);
            (id, Look { view_dead, silent: !reached, steady: reached })
        });
        let looks: BTreeMap<NodeId, Look> = looks.collect();
        let lasting = self.observer.look(&looks, self.now);
        let members = self.members.iter().map(|(&id, &(server, voter))| Member {
            id,
            name: format!("S{server}"),
            witness: server == WITNESS,
            voter,
            view_dead: lasting[&id].view_dead,
            silent: lasting[&id].silent,
            steady: lasting[&id].steady,
        });
        let stray = |server: &&Server| {
            server.runs && !server.cut && server.node.is_some_and(|id| !self.members.contains_key(&id))
        };
        let strays = self.servers.iter().filter(stray).filter_map(|server| server.node);
        Seen {
            settings: Settings { target_size: self.target, stabilization: STABILIZATION, relaunch: true },
            view: !self.view_away,
            primary: self.primary,
            joint: false,
            members: members.collect(),
            down: Vec::<Down>::new(),
            // In this model a name is a node.
            strays: strays.map(|id| id.to_string()).collect(),
            refused: Vec::new(),
        }
    }

    /// What really holds is checked, not what the policy thinks: both majorities, the old and the new one, live.
    fn carry_out(&mut self, change: &Change, what: &str) {
        let before = self.voters();
        let live = |world: &Self, voters: &BTreeSet<NodeId>| {
            voters.iter().filter(|id| world.members.contains_key(id) && world.reached(**id)).count()
        };
        assert!(live(self, &before) >= majority(before.len()), "there is no primary: {what}");
        match change {
            Change::Finish => unreachable!("no change is left half done here"),
            Change::TakeBack { name } => {
                let id = name.parse().expect("a node id");
                let server = self.servers.iter().position(|server| server.node == Some(id));
                self.members.insert(id, (server.expect("it runs"), false));
            }
            Change::Replace { old, new } => {
                self.members.get_mut(new).expect("a learner").1 = true;
                self.members.remove(old);
            }
            Change::Promote { new } => self.members.get_mut(new).expect("a learner").1 = true,
            Change::Demote { old } => self.members.get_mut(old).expect("a voter").1 = false,
            Change::Remove { old } => drop(self.members.remove(old)),
            Change::Transfer { to } => self.primary = Some(*to),
        }
        let after = self.voters();
        assert!(live(self, &after) >= majority(after.len()), "{what}: {before:?} -> {after:?}");
        assert!(after.len() >= majority(self.target).min(before.len()), "{what}: below the floor");
        assert!(after.symmetric_difference(&before).count() <= 2, "{what}: more than one at a time");
        assert!(self.primary.is_some_and(|id| after.contains(&id)), "{what}: the primary has no vote");
    }

    /// All is healed, and time passes.
    fn recover(&mut self) {
        for server in &mut self.servers {
            (server.runs, server.blind, server.cut) = (true, false, false);
        }
        self.view_away = false;
        (0..120).for_each(|_| self.second());
    }
}

fn event() -> impl Strategy<Value = Event> {
    let server = 0..SERVERS;
    prop_oneof![
        4 => server.clone().prop_map(Event::Crash),
        4 => server.clone().prop_map(Event::Return),
        2 => server.clone().prop_map(Event::Wipe),
        2 => (server.clone(), any::<bool>()).prop_map(|(n, is)| Event::Blind(n, is)),
        2 => (server, any::<bool>()).prop_map(|(n, is)| Event::Cut(n, is)),
        1 => any::<bool>().prop_map(Event::ViewAway),
        1 => (1..SERVERS).prop_map(Event::Target),
        1 => Just(Event::ManagerAgain),
        8 => (1..20_u8).prop_map(Event::Seconds),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn whatever_happens_changes_are_safe_and_all_is_well_in_the_end(
        events in proptest::collection::vec(event(), 1..80)
    ) {
        let mut world = World::new();
        events.into_iter().for_each(|event| world.happens(event));
        world.recover();
        // Too many disks may have been lost at once: that is beyond any policy.
        if world.primary.is_some() {
            let voters: Vec<usize> = world.voters().iter().map(|id| world.members[id].0).collect();
            prop_assert_eq!(voters.len(), world.target + usize::from(world.target == 2), "{:?}", &world.members);
            prop_assert_eq!(voters.contains(&WITNESS), world.target == 2, "{:?}", &world.members);
            prop_assert_eq!(world.members.len(), SERVERS, "nothing is left over: {:?}", &world.members);
            prop_assert_eq!(plan(&world.seen()).change, None);
        }
    }
}

/// As the design has it: each loss comes after the previous repair was finished, down to one data server, and back.
#[test]
fn down_to_the_last_data_server_and_back() {
    let mut world = World::new();
    // Two of the servers are spare.
    world.happens(Event::Target(3));
    world.happens(Event::Seconds(30));
    for spare in [4, 5] {
        world.happens(Event::Crash(spare));
        world.happens(Event::Seconds(30));
    }
    for lost in [3, 2] {
        world.happens(Event::Crash(lost));
        world.happens(Event::Seconds(30));
        assert!(world.primary.is_some());
        assert_eq!(plan(&world.seen()).change, None, "settled");
    }
    let voters: Vec<usize> = world.voters().iter().map(|id| world.members[id].0).collect();
    assert_eq!(voters, [WITNESS, 1]);
    for back in [2, 3] {
        world.happens(Event::Return(back));
        world.happens(Event::Seconds(30));
    }
    let voters: BTreeSet<usize> = world.voters().iter().map(|id| world.members[id].0).collect();
    assert_eq!(voters, BTreeSet::from([1, 2, 3]));
    assert_eq!(world.next_id, SERVERS as NodeId + 1, "all came back as who they were");
}
