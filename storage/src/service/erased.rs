//! Services behind one object-safe trait: bytes and JSON in, bytes and JSON out.

use serde::Deserialize as _;
use serde_json::error::Category;

use super::params::ParamsDeserializer;
use super::reply::Fields;
use super::{Context, EncodedCommands, QueryContext, Refusal, Service, batch};
use crate::codec::{self, CodecError};
use crate::delta::{EncodedReply, Millis};
use crate::tables::{Tables, View};

/// A request that does not name a command or query of the service, or not with these fields.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// The service has no such command or query.
    #[error("{0}")]
    UnknownName(String),
    /// The fields do not fit.
    #[error("{0}")]
    Fields(String),
}

/// A [`Service`] whose types are behind bytes (in the log) and JSON (at the edge).
pub trait ErasedService: Send + Sync {
    /// [`Service::NAME`].
    fn name(&self) -> &'static str;

    /// Applies an encoded command; the reply is encoded too.
    ///
    /// # Errors
    /// [`CodecError`] when the body is not a command of this service: nothing was applied.
    fn apply(
        &self,
        tables: &mut Tables<'_>,
        context: &mut Context<'_>,
        body: &[u8],
    ) -> Result<Result<EncodedReply, Refusal>, CodecError>;

    /// [`Service::next_deadline`].
    fn next_deadline(&self, tables: &View<'_>) -> Option<Millis>;

    /// [`Service::tick`].
    fn tick(&self, tables: &mut Tables<'_>, context: &mut Context<'_>);

    /// [`Service::session_ended`].
    fn session_ended(&self, tables: &mut Tables<'_>, context: &mut Context<'_>);

    /// Encodes the command `name` from its fields as JSON.
    ///
    /// # Errors
    /// [`BadRequest`] when there is no such command or the fields do not fit.
    fn command_from_json(&self, name: &str, fields: &[u8]) -> Result<Vec<u8>, BadRequest>;

    /// Encodes a command from JSON of the form `{"add":{…}}`, behind what `out` holds already.
    ///
    /// # Errors
    /// As [`Self::command_from_json`].
    fn command_from_tagged_json(&self, tagged: &str, out: &mut Vec<u8>) -> Result<(), BadRequest>;

    /// Encodes a batch `[{"<this service>":<tagged command>}, …]` of at most `most` commands, all of this service;
    /// `None` when it is anything else, or wrong.
    fn batch_from_json(&self, batch: &str, most: usize) -> Option<EncodedCommands>;

    /// Whether there is a query of that name.
    fn has_query(&self, name: &str) -> bool;

    /// Whether the body is a command of this service: another build may know more, or fewer.
    fn knows(&self, body: &[u8]) -> bool;

    /// An encoded command as JSON, for people who read the log.
    ///
    /// # Errors
    /// [`CodecError`] when the body is not a command of this service.
    fn command_to_json(&self, body: &[u8]) -> Result<serde_json::Value, CodecError>;

    /// Writes an encoded reply as JSON text, an object, behind what `out` holds already.
    ///
    /// # Errors
    /// [`CodecError`] when the bytes are not a reply of this service; part of it may be in `out`.
    fn reply_to_json(&self, reply: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Answers the query `name` with URL parameters (`name=hits&limit=10`); the answer is JSON text, an object.
    ///
    /// # Errors
    /// [`BadRequest`] when there is no such query or the parameters do not fit.
    fn query(
        &self,
        tables: &View<'_>,
        context: &QueryContext,
        name: &str,
        params: &str,
    ) -> Result<Result<Vec<u8>, Refusal>, BadRequest>;
}

impl<S: Service> ErasedService for S {
    fn name(&self) -> &'static str {
        S::NAME
    }

    fn apply(
        &self,
        tables: &mut Tables<'_>,
        context: &mut Context<'_>,
        body: &[u8],
    ) -> Result<Result<EncodedReply, Refusal>, CodecError> {
        let command: S::Command = codec::decode(body)?;
        Ok(Service::apply(self, tables, context, command).map(|reply| tables.encoded(&reply)))
    }

    fn next_deadline(&self, tables: &View<'_>) -> Option<Millis> {
        Service::next_deadline(self, tables)
    }

    fn tick(&self, tables: &mut Tables<'_>, context: &mut Context<'_>) {
        Service::tick(self, tables, context);
    }

    fn session_ended(&self, tables: &mut Tables<'_>, context: &mut Context<'_>) {
        Service::session_ended(self, tables, context);
    }

    fn command_from_json(&self, name: &str, fields: &[u8]) -> Result<Vec<u8>, BadRequest> {
        check_name(name)?;
        let fields = std::str::from_utf8(fields)
            .map_err(|_| BadRequest::Fields("a command's fields are JSON, and that is UTF-8".to_owned()))?;
        let fields = if fields.trim_ascii().is_empty() { "{}" } else { fields };
        // serde would take the fields as a list too, by position.
        if !fields.trim_ascii_start().starts_with('{') {
            return Err(BadRequest::Fields("a command's fields are a JSON object".to_owned()));
        }
        let mut tagged = String::with_capacity(fields.len() + name.len() + 5);
        tagged.extend(["{\"", name, "\":", fields, "}"]);
        let mut encoded = Vec::with_capacity(fields.len());
        self.command_from_tagged_json(&tagged, &mut encoded)?;
        Ok(encoded)
    }

    fn command_from_tagged_json(&self, tagged: &str, out: &mut Vec<u8>) -> Result<(), BadRequest> {
        let command: S::Command =
            serde_json::from_str(tagged).map_err(|e| bad_request(without_position(&e)))?;
        encode_command::<S>(&command, out).map_err(|e| {
            let text =
                format!("a service's command must be readable as it is stored, and this one's is not: {e}");
            BadRequest::Fields(text)
        })
    }

    fn batch_from_json(&self, batch: &str, most: usize) -> Option<EncodedCommands> {
        batch::read::<S>(batch, most)
    }

    fn has_query(&self, name: &str) -> bool {
        // Parameters that it lacks are another matter.
        let unknown = |name| {
            let asked = S::Query::deserialize(ParamsDeserializer::new(name, ""));
            asked.is_err_and(|e| matches!(bad_request(e.to_string()), BadRequest::UnknownName(_)))
        };
        // To a service without queries, whose type is no enum, all names are alike.
        !unknown(name) && unknown("")
    }

    fn knows(&self, body: &[u8]) -> bool {
        codec::decode::<S::Command>(body).is_ok()
    }

    fn command_to_json(&self, body: &[u8]) -> Result<serde_json::Value, CodecError> {
        serde_json::to_value(codec::decode::<S::Command>(body)?).map_err(not_json)
    }

    fn reply_to_json(&self, reply: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
        serde_json::to_writer(out, &Fields(&codec::decode::<S::Reply>(reply)?)).map_err(not_json)
    }

    fn query(
        &self,
        tables: &View<'_>,
        context: &QueryContext,
        name: &str,
        params: &str,
    ) -> Result<Result<Vec<u8>, Refusal>, BadRequest> {
        check_name(name)?;
        let query = S::Query::deserialize(ParamsDeserializer::new(name, params)).map_err(|e| {
            // Once more, to learn which parameter it is.
            let again: Result<S::Query, _> =
                serde_path_to_error::deserialize(ParamsDeserializer::new(name, params));
            let text = match again.map_err(|e| e.path().iter().next_back().map(ToString::to_string)) {
                Err(Some(parameter)) if parameter != name => format!("{parameter}: {e}"),
                _ => e.to_string(),
            };
            bad_request(text)
        })?;
        match Service::query(self, tables, context, query) {
            Ok(answer) => {
                let json = serde_json::to_vec(&answer).map_err(|e| BadRequest::Fields(e.to_string()))?;
                Ok(Ok(json))
            }
            Err(refusal) => Ok(Err(refusal)),
        }
    }
}

/// Encodes a command behind what `out` holds. What is logged must be readable: serde's `untagged`, `flatten` and
/// `skip_serializing_if` give what bincode cannot read back, and a log that holds it stops every server.
pub(super) fn encode_command<S: Service>(command: &S::Command, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let start = out.len();
    codec::encode_into(command, out);
    codec::decode::<S::Command>(&out[start..]).map(drop)
}

/// Names go into JSON unescaped, so only words that need no escape pass.
fn check_name(name: &str) -> Result<(), BadRequest> {
    let word = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    if word {
        Ok(())
    } else {
        Err(BadRequest::UnknownName(format!("no command or query is called {name:?}")))
    }
}

/// serde says of an enum's tag that it is an "unknown variant"; to the user it is an unknown name.
fn bad_request(text: String) -> BadRequest {
    match text.strip_prefix("unknown variant ") {
        Some(rest) => BadRequest::UnknownName(format!("unknown name {rest}")),
        None => BadRequest::Fields(text),
    }
}

/// serde_json's message without "at line 1 column 20": that counts our wrapping, not the user's text.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.find(" at line ").map_or(&text[..], |at| &text[..at]);
    match error.classify() {
        Category::Syntax | Category::Eof => format!("this is no valid JSON: {text}"),
        Category::Data | Category::Io => text.to_owned(),
    }
}

fn not_json(error: serde_json::Error) -> CodecError {
    CodecError::Malformed(format!("not representable as JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    /// A mistake that the compiler does not see.
    struct Careless;

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum CarelessCommand {
        Note {
            #[serde(default, skip_serializing_if = "Option::is_none")]
            text: Option<String>,
        },
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum CarelessQuery {
        Notes { _from: u64 },
    }

    impl Service for Careless {
        const NAME: &'static str = "careless";
        type Command = CarelessCommand;
        type Reply = ();
        type Query = CarelessQuery;
        type Answer = ();

        fn apply(&self, _: &mut Tables<'_>, _: &mut Context<'_>, _: CarelessCommand) -> Result<(), Refusal> {
            Ok(())
        }

        fn query(&self, _: &View<'_>, _: &QueryContext, _: CarelessQuery) -> Result<(), Refusal> {
            Ok(())
        }
    }

    #[test]
    fn a_query_is_known_by_its_name_alone() {
        assert!(Careless.has_query("notes"));
        assert!(!Careless.has_query("note") && !Careless.has_query(""));
    }

    #[test]
    fn a_command_that_could_not_be_read_back_is_not_logged() {
        let good = Careless.command_from_json("note", br#"{"text":"hello"}"#).unwrap();
        assert!(Careless.knows(&good));
        let error = Careless.command_from_json("note", b"{}").unwrap_err();
        assert!(error.to_string().contains("must be readable as it is stored"), "{error}");
        let batch =
            |items: &str| Careless.batch_from_json(&format!("[{items}]"), 2).map(|batch| batch.ends.len());
        let good = r#"{"careless":{"note":{"text":"hello"}}}"#;
        assert_eq!(batch(&format!("{good},{good}")), Some(2));
        assert_eq!(batch(&format!(r#"{good},{{"careless":{{"note":{{}}}}}}"#)), None);
    }
}
