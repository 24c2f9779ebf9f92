//! The tables against a `BTreeMap`, through flushes, reads during a flush, and restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::base::{Base, FlushMeta};
use super::overlay::Overlay;
use super::rows::{Rows, row_hash};
use super::*;

type RowKey = (String, u64);
type Model = BTreeMap<RowKey, String>;

const TABLE: Table<RowKey, String> = Table::new("table");
/// Rows of a neighbour, whose names are a prefix of ours and the other way round.
const NEIGHBOURS: [(&str, Table<RowKey, String>); 3] =
    [("s", Table::new("tabl")), ("s", Table::new("table2")), ("ss", Table::new("table"))];

#[derive(Debug, Clone)]
enum Step {
    Put(RowKey, String),
    /// The same by [`Tables::put_new`], if there never was such a row.
    PutNew(RowKey, String),
    Remove(RowKey),
    Range(Bound<RowKey>, Bound<RowKey>, usize),
    /// Starts a flush; what comes then goes into a new overlay.
    Freeze,
    /// Ends the flush, if one has been started.
    Flush,
    /// The process dies and starts again.
    Restart,
}

fn keys() -> impl Strategy<Value = RowKey> {
    // Few, so that steps meet; with zero bytes and shared prefixes, so that the order is put to the test.
    ("[ab\0]{0,2}", 0u64..4)
}

fn bounds() -> impl Strategy<Value = Bound<RowKey>> {
    prop_oneof![Just(Bound::Unbounded), keys().prop_map(Bound::Included), keys().prop_map(Bound::Excluded),]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let value = prop_oneof![9 => "[a-z]{0,8}", 1 => "[a-z]{2000,3000}"];
    let step = prop_oneof![
        12 => (keys(), value.clone()).prop_map(|(key, value)| Step::Put(key, value)),
        6 => (keys(), value).prop_map(|(key, value)| Step::PutNew(key, value)),
        6 => keys().prop_map(Step::Remove),
        6 => (bounds(), bounds(), 1usize..8).prop_map(|(from, to, limit)| Step::Range(from, to, limit)),
        2 => Just(Step::Freeze),
        2 => Just(Step::Flush),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..80)
}

/// The tables beside what they must hold.
struct Run<'a> {
    dir: &'a Path,
    rows: Rows,
    model: Model,
    /// The keys that ever had a row.
    used: BTreeSet<RowKey>,
    /// The flush that has been started: its rows, and the model then.
    frozen: Option<(Arc<Overlay>, u128, Model)>,
    /// What is on disk.
    flushed: Model,
    neighbours: u128,
    /// A store to hold on to while ours is closed.
    nothing: Base,
    _elsewhere: tempfile::TempDir,
}

impl<'a> Run<'a> {
    fn new(dir: &'a Path) -> Self {
        let mut rows = Rows::new(Base::open(dir).unwrap(), 0);
        for (namespace, table) in &NEIGHBOURS {
            let mut tables = Tables::new(&mut rows, namespace);
            tables.put(table, &("a".to_owned(), 1), &"a neighbour's".to_owned());
        }
        let neighbours = rows.hash();
        let elsewhere = tempfile::tempdir().unwrap();
        let nothing = Base::open(elsewhere.path()).unwrap();
        let mut run = Self {
            dir,
            rows,
            model: Model::new(),
            used: BTreeSet::new(),
            frozen: None,
            flushed: Model::new(),
            neighbours,
            nothing,
            _elsewhere: elsewhere,
        };
        run.freeze();
        run.flush();
        run
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::PutNew(key, value) if !self.used.contains(&key) => {
                Tables::new(&mut self.rows, "s").put_new(&TABLE, &key, &value);
                self.was_put(key, value);
            }
            Step::Put(key, value) | Step::PutNew(key, value) => {
                Tables::new(&mut self.rows, "s").put(&TABLE, &key, &value);
                self.was_put(key, value);
            }
            Step::Remove(key) => {
                let mut tables = Tables::new(&mut self.rows, "s");
                tables.remove(&TABLE, &key);
                assert_eq!(tables.get(&TABLE, &key), None);
                assert_eq!(tables.damage(), None);
                self.model.remove(&key);
            }
            Step::Range(from, to, limit) => self.check_range(&from, &to, limit),
            Step::Freeze => self.freeze(),
            Step::Flush => self.flush(),
            Step::Restart => self.restart(),
        }
        self.check();
    }

    fn was_put(&mut self, key: RowKey, value: String) {
        let view = View::new(&self.rows, "s");
        assert_eq!(view.get(&TABLE, &key).as_ref(), Some(&value));
        assert_eq!(view.damage(), None);
        self.used.insert(key.clone());
        self.model.insert(key, value);
    }

    fn freeze(&mut self) {
        if self.frozen.is_none() {
            self.frozen = Some((self.rows.freeze(), self.rows.hash(), self.model.clone()));
        }
    }

    fn flush(&mut self) {
        let Some((frozen, hash, model)) = self.frozen.take() else {
            return;
        };
        let changes = frozen.iter().map(|(key, dirty)| (key.to_vec(), dirty.value()));
        let meta = FlushMeta { hash, ..FlushMeta::default() };
        self.rows.base().flush(changes, &meta).unwrap();
        // Between the write and this, reads go through all three layers.
        self.check();
        self.rows.thawed();
        self.flushed = model;
    }

    fn restart(&mut self) {
        // A batch that was never applied is no different from one that a kill prevented.
        self.rows = Rows::new(self.nothing.clone(), 0);
        let base = Base::open(self.dir).unwrap();
        let meta = base.meta().unwrap().unwrap();
        self.rows = Rows::new(base, meta.hash);
        self.frozen = None;
        self.model = self.flushed.clone();
        assert_eq!(self.rows.dirty_bytes(), 0);
    }

    /// All rows, and the hash computed anew.
    fn check(&self) {
        self.check_range(&Bound::Unbounded, &Bound::Unbounded, usize::MAX);
        let sum = self.model.iter().fold(self.neighbours, |sum, (key, value)| {
            let mut row = b"s\0table\0".to_vec();
            key.encode_into(&mut row);
            sum.wrapping_add(row_hash(&row, &codec::encode(value)))
        });
        assert_eq!(self.rows.hash(), sum, "the incremental hash is not the hash of the rows");
        let mut scanned = 0u128;
        let all = self.rows.scan(Bound::Unbounded, Bound::Unbounded, |key, value| {
            scanned = scanned.wrapping_add(row_hash(key, value));
            ControlFlow::Continue(())
        });
        all.unwrap();
        assert_eq!(scanned, sum, "a scan over everything does not give the hash");
    }

    fn check_range(&self, from: &Bound<RowKey>, to: &Bound<RowKey>, limit: usize) {
        let inside = |key: &RowKey| {
            let above = match from {
                Bound::Unbounded => true,
                Bound::Included(from) => key >= from,
                Bound::Excluded(from) => key > from,
            };
            let below = match to {
                Bound::Unbounded => true,
                Bound::Included(to) => key <= to,
                Bound::Excluded(to) => key < to,
            };
            above && below
        };
        let wanted: Vec<(RowKey, String)> = (self.model.iter())
            .filter(|(key, _)| inside(key))
            .take(limit)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let view = View::new(&self.rows, "s");
        let mut found = Vec::new();
        view.range(&TABLE, (from.as_ref(), to.as_ref()), |key, value| {
            found.push((key, value));
            if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        assert_eq!(view.damage(), None);
        assert_eq!(found, wanted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tables_are_a_map_through_flushes_and_restarts(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let mut run = Run::new(dir.path());
        for step in steps {
            run.step(step);
        }
        run.freeze();
        run.flush();
        run.restart();
        run.check();
    }
}

/// A row that is put, flushed, removed, and put again while its removal is being flushed.
#[test]
fn a_row_that_changes_while_it_is_being_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Run::new(dir.path());
    let key = ("k".to_owned(), 1);
    let put = |value: &str| Step::Put(("k".to_owned(), 1), value.to_owned());
    for step in [
        put("one"),
        Step::Freeze,
        Step::Flush,
        Step::Remove(key.clone()),
        Step::Freeze,
        put("two"),
        Step::Remove(key.clone()),
        put("three"),
        Step::Flush,
        Step::Freeze,
        Step::Remove(key),
        Step::Restart,
    ] {
        run.step(step);
    }
    assert!(run.model.is_empty(), "the removal was flushed, the last put was not");
}

#[test]
fn what_is_put_and_removed_between_two_flushes_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Run::new(dir.path());
    for n in 0..100 {
        run.step(Step::Put(("k".to_owned(), n), "value".to_owned()));
    }
    assert!(run.rows.dirty_bytes() > 1_000);
    for n in 0..100 {
        run.step(Step::Remove(("k".to_owned(), n)));
    }
    assert_eq!(run.rows.dirty_bytes(), 0);
}

#[test]
fn a_row_that_does_not_decode_is_damage_and_not_absence() {
    let dir = tempfile::tempdir().unwrap();
    let mut rows = Rows::new(Base::open(dir.path()).unwrap(), 0);
    const AS_NUMBER: Table<RowKey, u64> = Table::new("table");
    let key = ("k".to_owned(), 1);
    Tables::new(&mut rows, "s").put(&TABLE, &key, &"not a number at all".to_owned());
    let view = View::new(&rows, "s");
    assert_eq!(view.get(&AS_NUMBER, &key), None);
    let damage = view.damage().expect("damage went unseen");
    assert!(damage.row.starts_with("s\\x00table\\x00k"), "{damage}");
    let view = View::new(&rows, "s");
    view.range(&AS_NUMBER, (Bound::Unbounded, Bound::Unbounded), |_, _| ControlFlow::Continue(()));
    assert!(view.damage().is_some());
}
