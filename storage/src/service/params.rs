//! A query from a URL: `GET /v1/counter/list?prefix=a&limit=10` is `Query::List { prefix, limit }`.
//!
//! serde's enum, whose tag is the path's last segment and whose fields are the parameters.

use percent_encoding::percent_decode_str;
use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, VariantAccess, Visitor};

/// Deserializes an enum from a variant's name and URL-encoded fields.
pub(super) struct ParamsDeserializer<'a> {
    name: &'a str,
    params: &'a str,
}

impl<'a> ParamsDeserializer<'a> {
    pub(super) fn new(name: &'a str, params: &'a str) -> Self {
        Self { name, params }
    }
}

impl<'de> Deserializer<'de> for ParamsDeserializer<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_enum(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl<'de> EnumAccess<'de> for ParamsDeserializer<'de> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Error> {
        let name: StrDeserializer<'_, Error> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for ParamsDeserializer<'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(fields(self.params)?)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        Err(serde::de::Error::custom("a query with unnamed fields cannot be asked by URL"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        fields(self.params)?.deserialize_struct("query", names, visitor)
    }
}

fn fields(params: &str) -> Result<serde_urlencoded::Deserializer<'_>, Error> {
    // The parser would put a replacement character there, and the answer would be of another name.
    if percent_decode_str(params).decode_utf8().is_err() {
        return Err(serde::de::Error::custom("a parameter is not UTF-8 behind its percent signs"));
    }
    Ok(serde_urlencoded::Deserializer::new(form_urlencoded::parse(params.as_bytes())))
}
