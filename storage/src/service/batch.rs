//! Batches of one service's commands, read in one pass.
//!
//! In general a batch is read in two: whose command an item is stands within the item, so its text is found first and
//! read by that service then. Most batches are of one service, and large ones are read for a good part of their time.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Service;
use super::erased::encode_command;

/// Encoded commands, one behind the other.
#[derive(Debug, Default)]
pub struct EncodedCommands {
    /// The commands.
    pub bytes: Vec<u8>,
    /// Where each of them ends.
    pub ends: Vec<usize>,
}

/// Reads `[{"<service>":<command>}, …]` with at most `most` items; `None` when it is anything else.
pub(super) fn read<S: Service>(batch: &str, most: usize) -> Option<EncodedCommands> {
    let mut commands = EncodedCommands { bytes: Vec::with_capacity(batch.len() / 2), ends: Vec::new() };
    let mut json = serde_json::Deserializer::from_str(batch);
    let items = Items::<S> { commands: &mut commands, most, service: PhantomData };
    items.deserialize(&mut json).and_then(|()| json.end()).is_ok().then_some(commands)
}

struct Items<'c, S> {
    commands: &'c mut EncodedCommands,
    most: usize,
    service: PhantomData<S>,
}

impl<'de, S: Service> DeserializeSeed<'de> for Items<'_, S> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, S: Service> Visitor<'de> for Items<'_, S> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(command) = seq.next_element::<Item<S>>()? {
            if self.commands.ends.len() == self.most {
                return Err(A::Error::invalid_length(self.most + 1, &self));
            }
            encode_command::<S>(&command.0, &mut self.commands.bytes).map_err(A::Error::custom)?;
            self.commands.ends.push(self.commands.bytes.len());
        }
        Ok(())
    }
}

struct Item<S: Service>(S::Command);

impl<'de, S: Service> Deserialize<'de> for Item<S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ItemVisitor(PhantomData))
    }
}

struct ItemVisitor<S>(PhantomData<S>);

impl<'de, S: Service> Visitor<'de> for ItemVisitor<S> {
    type Value = Item<S>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object that names {} alone", S::NAME)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item<S>, A::Error> {
        let own = map.next_key::<Name<'de>>()?.is_some_and(|name| name.0 == S::NAME);
        if !own {
            return Err(A::Error::custom("of another service"));
        }
        let command = map.next_value()?;
        match map.next_key::<IgnoredAny>()? {
            None => Ok(Item(command)),
            Some(_) => Err(A::Error::invalid_length(2, &self)),
        }
    }
}

/// Borrowed unless it has escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
