//! The exchange against a list of orders and a map of stocks: same replies, same refusals, numbers without a gap, and
//! quantities that add up.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use quorate_storage::codec;
use quorate_storage::delta::{Command as Delta, DeltaResult};
use serde_json::{Value, json};

use super::replicas::Replicas;
use crate::services::exchange::{Command, NewStock, OPENING, Order, Reply, Side};

const NAMES: [&str; 3] = ["GameStart", "FishCo", "NewCo"];
const CLIENTS: [&str; 2] = ["ada", "bob"];

fn command() -> impl Strategy<Value = Command> {
    let name = || prop::sample::select(NAMES.to_vec()).prop_map(str::to_owned);
    let side = prop::sample::select(vec![Side::Buy, Side::Sell]);
    let quantity = prop_oneof![20 => 0u64..60, 1 => Just(u64::MAX)];
    let client = prop::sample::select(CLIENTS.to_vec()).prop_map(str::to_owned);
    let stock =
        || (name(), 0u64..5, 0u64..50).prop_map(|(name, price, quantity)| NewStock { name, price, quantity });
    prop_oneof![
        20 => (name(), side, quantity, client)
            .prop_map(|(stock, side, quantity, client)| Command::Order { stock, side, quantity, client }),
        2 => (name(), 0u64..5).prop_map(|(stock, price)| Command::Reprice { stock, price }),
        2 => stock().prop_map(Command::AddStock),
        1 => vec(stock(), 0..3).prop_map(|stocks| Command::Load { stocks }),
    ]
}

/// Price, what was there before any order, what is there, volume.
type Stock = (u64, u64, u64, u64);

struct Model {
    stocks: BTreeMap<String, Stock>,
    orders: Vec<Order>,
}

impl Model {
    fn new() -> Self {
        let opening = OPENING.map(|name| (name.to_owned(), (10_000, 100, 100, 0)));
        Self { stocks: opening.into(), orders: Vec::new() }
    }

    /// The order, if the command is one that is carried out; else nothing, or the code of the refusal.
    fn apply(&mut self, command: &Command, time_ms: u64) -> Result<Option<Order>, &'static str> {
        match command.clone() {
            Command::Order { stock, side, quantity, client } => {
                if quantity == 0 {
                    return Err("bad_quantity");
                }
                let (price, _, left, volume) = self.stocks.get_mut(&stock).ok_or("unknown_stock")?;
                let after = match side {
                    Side::Buy => left.checked_sub(quantity).ok_or("not_enough")?,
                    Side::Sell => left.checked_add(quantity).ok_or("overflow")?,
                };
                *volume = volume.checked_add(quantity).ok_or("overflow")?;
                *left = after;
                let number = self.orders.len() as u64;
                let order = Order { number, stock, side, quantity, price: *price, client, time_ms };
                self.orders.push(order.clone());
                Ok(Some(order))
            }
            Command::AddStock(NewStock { name, price, quantity }) => {
                if price == 0 {
                    return Err("bad_price");
                }
                if self.stocks.contains_key(&name) {
                    return Err("stock_exists");
                }
                self.stocks.insert(name, (price, quantity, quantity, 0));
                Ok(None)
            }
            Command::Reprice { stock, price: new } => {
                if new == 0 {
                    return Err("bad_price");
                }
                self.stocks.get_mut(&stock).ok_or("unknown_stock")?.0 = new;
                Ok(None)
            }
            Command::Load { stocks } => {
                let names: std::collections::BTreeSet<_> = stocks.iter().map(|stock| &stock.name).collect();
                // One after the other: the first mistake is told.
                if stocks.is_empty() {
                    return Err("bad_catalog");
                }
                for (at, stock) in stocks.iter().enumerate() {
                    if stock.price == 0 {
                        return Err("bad_price");
                    }
                    if stocks[..at].iter().any(|before| before.name == stock.name) {
                        return Err("bad_catalog");
                    }
                }
                assert_eq!(names.len(), stocks.len());
                if !self.orders.is_empty() {
                    return Err("already_traded");
                }
                let stock = |NewStock { name, price, quantity }| (name, (price, quantity, quantity, 0));
                self.stocks = stocks.into_iter().map(stock).collect();
                Ok(None)
            }
        }
    }

    fn check_state(&self, replicas: &Replicas) {
        let ask = |query: &str, params: &str| -> Value {
            serde_json::from_str(&replicas.query("exchange", query, params).unwrap()).unwrap()
        };
        let rows = |(name, (price, _, quantity, volume)): (&String, &Stock)| json!({"name": name, "price": price, "quantity": quantity, "volume": volume});
        let stocks: Vec<Value> = self.stocks.iter().map(rows).collect();
        assert_eq!(ask("catalog", ""), json!({"stocks": stocks, "next": null}));
        let orders = |params: &str, wanted: &dyn Fn(&Order) -> bool| {
            let (mut found, mut since) = (Vec::new(), 0);
            loop {
                let page = ask("orders", &format!("limit=3&since={since}{params}"));
                found.extend(page["orders"].as_array().unwrap().clone());
                match page["next"].as_u64() {
                    Some(next) => since = next,
                    None => break,
                }
            }
            let wanted: Vec<&Order> = self.orders.iter().filter(|order| wanted(order)).collect();
            assert_eq!(json!(found), json!(wanted), "{params}");
        };
        orders("", &|_| true);
        orders("&stock=FishCo", &|order| order.stock == "FishCo");
        orders("&client=ada", &|order| order.client == "ada");
        orders("&client=bob&stock=GameStart", &|order| order.client == "bob" && order.stock == "GameStart");
        orders("&from_ms=20&until_ms=60", &|order| (20..60).contains(&order.time_ms));
        for (name, (_, before, left, volume)) in &self.stocks {
            let of = |side| {
                let orders = self.orders.iter().filter(|order| order.stock == *name && order.side == side);
                orders.map(|order| u128::from(order.quantity)).sum::<u128>()
            };
            assert_eq!(u128::from(*before) + of(Side::Sell), u128::from(*left) + of(Side::Buy), "{name}");
            assert_eq!(u128::from(*volume), of(Side::Buy) + of(Side::Sell), "{name}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_exchange_agrees_with_a_model(entries in vec(vec(command(), 1..6), 1..25)) {
        let mut replicas = Replicas::new();
        let mut model = Model::new();
        for (time, commands) in (0..).step_by(5).zip(entries) {
            let deltas: Vec<Delta> =
                commands.iter().map(|command| Delta::sessionless("exchange", codec::encode(command))).collect();
            for (outcome, command) in replicas.apply(time, &deltas).into_iter().zip(&commands) {
                let found = match &outcome.result {
                    DeltaResult::Reply(reply) => Ok(match codec::decode(reply).unwrap() {
                        Reply::Ordered(order) => Some(order),
                        Reply::Stock(_) | Reply::Loaded { .. } => None,
                    }),
                    DeltaResult::Refused(refusal) => Err(refusal.code.clone()),
                    other => panic!("{other:?}"),
                };
                prop_assert_eq!(found, model.apply(command, time).map_err(str::to_owned), "{:?}", command);
            }
            replicas.flush_second();
        }
        model.check_state(&replicas);
    }
}
