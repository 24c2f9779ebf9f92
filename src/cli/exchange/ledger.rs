//! A trader's own log of its orders, and how it compares with the cluster's.

use std::collections::BTreeMap;

use crate::services::exchange::{Order, Side};

/// What a trader did, as far as it knows.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Orders that were carried out.
    own: BTreeMap<u64, Order>,
    /// Those whose number another one was given later: two orders never share one, so the cluster has lost them.
    overwritten: Vec<Order>,
    /// Orders that may have been carried out.
    unknown: Vec<(Side, String, u64)>,
}

/// What is to be said of one order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) text: String,
    pub(super) wrong: bool,
}

impl Verdict {
    fn wrong(number: u64, what: &str) -> Self {
        Self { text: format!("order {number}: {what}"), wrong: true }
    }
}

impl Ledger {
    pub(super) fn carried_out(&mut self, order: Order) {
        self.overwritten.extend(self.own.insert(order.number, order));
    }

    pub(super) fn maybe_carried_out(&mut self, side: Side, stock: &str, quantity: u64) {
        self.unknown.push((side, stock.to_owned(), quantity));
    }

    pub(super) fn orders(&self) -> usize {
        self.own.len() + self.overwritten.len()
    }

    /// Those of unknown outcome that are not explained.
    pub(super) fn unknown(&self) -> usize {
        self.unknown.len()
    }

    /// Compares it with the cluster's log of the trader's account: each own order is there as it is known here, and nothing else
    /// but what may have been carried out.
    pub(super) fn compare(&mut self, logged: &[Order]) -> Vec<Verdict> {
        let mut missing = self.own.clone();
        let mut verdicts: Vec<Verdict> =
            logged.iter().map(|order| self.judge(order, missing.remove(&order.number))).collect();
        let lost = |number| Verdict::wrong(number, "acknowledged, and not in the cluster's log");
        verdicts.extend(missing.into_keys().map(lost));
        let twice = |order: &Order| {
            Verdict::wrong(order.number, &format!("acknowledged, and its number was given again: {order:?}"))
        };
        verdicts.extend(self.overwritten.iter().map(twice));
        verdicts
    }

    fn judge(&mut self, logged: &Order, own: Option<Order>) -> Verdict {
        let number = logged.number;
        let ok = |what: &str| Verdict { text: format!("order {number}: {what}"), wrong: false };
        match own {
            Some(own) if own == *logged => ok("ok"),
            Some(own) => {
                Verdict::wrong(number, &format!("differs: here {own:?}, in the cluster's log {logged:?}"))
            }
            None => {
                let told = (logged.side, logged.stock.clone(), logged.quantity);
                match self.unknown.iter().position(|unknown| *unknown == told) {
                    Some(at) => {
                        self.unknown.swap_remove(at);
                        ok("ok; its reply was lost")
                    }
                    None => Verdict::wrong(number, &format!("nobody here made it: {logged:?}")),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(number: u64, quantity: u64) -> Order {
        let (stock, client) = ("GameStart".to_owned(), "ada".to_owned());
        Order { number, stock, side: Side::Buy, quantity, price: 10_000, client, time_ms: 7 }
    }

    fn ledger(own: &[Order]) -> Ledger {
        let mut ledger = Ledger::default();
        own.iter().for_each(|order| ledger.carried_out(order.clone()));
        ledger
    }

    fn wrong(ledger: &mut Ledger, logged: &[Order]) -> Vec<String> {
        let verdicts = ledger.compare(logged);
        verdicts.into_iter().filter(|verdict| verdict.wrong).map(|verdict| verdict.text).collect()
    }

    #[test]
    fn what_agrees_is_ok() {
        let all = [order(0, 3), order(4, 1)];
        let verdicts = ledger(&all).compare(&all);
        assert_eq!(verdicts.len(), 2);
        assert!(
            verdicts.iter().all(|verdict| !verdict.wrong && verdict.text.ends_with("ok")),
            "{verdicts:?}"
        );
    }

    #[test]
    fn each_difference_is_found() {
        let one = |own: &[Order], logged: &[Order], what: &str| {
            let found = wrong(&mut ledger(own), logged);
            assert!(found.len() == 1 && found[0].contains(what), "{found:?}, expected {what}");
        };
        one(&[order(0, 3)], &[], "order 0: acknowledged, and not in the cluster's log");
        one(&[order(0, 3)], &[order(0, 4)], "order 0: differs");
        one(&[], &[order(0, 3)], "order 0: nobody here made it");
        // Lost in a failover, and the next order was given its number.
        one(
            &[order(5, 3), order(5, 1)],
            &[order(5, 1)],
            "order 5: acknowledged, and its number was given again",
        );
    }

    #[test]
    fn an_order_of_unknown_outcome_explains_one_in_the_log() {
        let mut own = ledger(&[]);
        own.maybe_carried_out(Side::Buy, "GameStart", 3);
        assert_eq!(own.unknown(), 1);
        let found = wrong(&mut own, &[order(0, 3), order(1, 3)]);
        assert!(found.len() == 1 && found[0].contains("order 1: nobody here made it"), "{found:?}");
        assert_eq!(own.unknown(), 0);
    }
}
