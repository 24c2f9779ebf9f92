//! A reply as JSON: an object. Of an enum it has the variant's fields alone, for each command has its own variant.

use serde::ser::{SerializeMap as _, SerializeStruct, SerializeStructVariant};
use serde::{Serialize, Serializer};

/// A reply, to be written as JSON.
pub(super) struct Fields<'r, R>(pub(super) &'r R);

impl<R: Serialize> Serialize for Fields<'_, R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(Outermost(serializer))
    }
}

/// Leaves the names of variants out. All else, and what is within, is the inner serializer's.
struct Outermost<S>(S);

macro_rules! pass_on {
    ($($name:ident: $what:ty),*) => {
        $(fn $name(self, value: $what) -> Result<S::Ok, S::Error> { self.0.$name(value) })*
    };
}

impl<S: Serializer> Serializer for Outermost<S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = S::SerializeSeq;
    type SerializeTuple = S::SerializeTuple;
    type SerializeTupleStruct = S::SerializeTupleStruct;
    type SerializeTupleVariant = S::SerializeTupleVariant;
    type SerializeMap = S::SerializeMap;
    type SerializeStruct = S::SerializeStruct;
    type SerializeStructVariant = Variant<S::SerializeStruct>;

    pass_on!(
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64, serialize_f32: f32,
        serialize_f64: f64, serialize_char: char, serialize_str: &str, serialize_bytes: &[u8]
    );

    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        self.0.serialize_none()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        self.0.serialize_map(Some(0))?.end()
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<S::Ok, S::Error> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<S::Ok, S::Error> {
        self.serialize_unit()
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        value.serialize(self)
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        self.0.serialize_seq(len)
    }

    fn serialize_tuple(self, len: usize) -> Result<Self::SerializeTuple, S::Error> {
        self.0.serialize_tuple(len)
    }

    fn serialize_tuple_struct(
        self,
        name: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleStruct, S::Error> {
        self.0.serialize_tuple_struct(name, len)
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        self.0.serialize_tuple_variant(name, index, variant, len)
    }

    fn serialize_map(self, len: Option<usize>) -> Result<S::SerializeMap, S::Error> {
        self.0.serialize_map(len)
    }

    fn serialize_struct(self, name: &'static str, len: usize) -> Result<S::SerializeStruct, S::Error> {
        self.0.serialize_struct(name, len)
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        _: u32,
        _: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        self.0.serialize_struct(name, len).map(Variant)
    }
}

/// A variant's fields, as a struct's.
struct Variant<S>(S);

impl<S: SerializeStruct> SerializeStructVariant for Variant<S> {
    type Ok = S::Ok;
    type Error = S::Error;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        key: &'static str,
        value: &T,
    ) -> Result<(), S::Error> {
        self.0.serialize_field(key, value)
    }

    fn end(self) -> Result<S::Ok, S::Error> {
        self.0.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    enum Reply {
        Made { number: u64, of: Option<Inner> },
        Inner(Inner),
        Done,
    }

    #[derive(Serialize)]
    enum Inner {
        Named { text: &'static str },
        Nothing,
    }

    fn json(reply: &Reply) -> String {
        serde_json::to_string(&Fields(reply)).unwrap()
    }

    #[test]
    fn a_reply_has_the_fields_of_its_variant_and_what_is_within_keeps_its_names() {
        let inner = Inner::Named { text: "a" };
        let made = json(&Reply::Made { number: 1, of: Some(inner) });
        assert_eq!(made, r#"{"number":1,"of":{"Named":{"text":"a"}}}"#);
        assert_eq!(
            json(&Reply::Made { number: 2, of: Some(Inner::Nothing) }),
            r#"{"number":2,"of":"Nothing"}"#
        );
        assert_eq!(json(&Reply::Inner(Inner::Named { text: "b" })), r#"{"text":"b"}"#);
        assert_eq!(json(&Reply::Done), "{}");
    }
}
