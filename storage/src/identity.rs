//! Who a server is: `DIR/identity.json`.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::raft_types::NodeId;
use crate::{FORMAT_VERSION, files};

/// The file's name.
pub const FILE: &str = "identity.json";

/// A server's identity. Written once, when its directory is made; never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster's id: 32 hexadecimal digits, made by `quorate cluster init`.
    pub cluster_id: String,
    /// The Raft node id, from a counter in the replicated state; never reused.
    pub node_id: NodeId,
    /// The server's stable name.
    pub name: String,
    /// The version of everything below the directory: [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Peers that were known when it joined: asked until the membership says more.
    #[serde(default)]
    pub seeds: Vec<String>,
    /// The services that it was made with: a build that lacks one of them would diverge from the other replicas.
    #[serde(default)]
    pub services: Vec<String>,
}

/// The file: a flipped digit in a node id would make it another node.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    identity: Identity,
    checksum: String,
}

/// Why an identity cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read.
    #[error("{FILE} cannot be read: {0}")]
    Io(#[from] io::Error),
    /// The file is not an identity.
    #[error("{FILE} is damaged: {0}")]
    Damaged(String),
    /// The directory is of another format.
    #[error("the directory has format version {0}, this build reads version {FORMAT_VERSION}")]
    Format(u32),
}

impl Identity {
    /// Reads the identity in `dir`; `None` when there is none.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn read(dir: &Path) -> Result<Option<Self>, IdentityError> {
        let text = match std::fs::read(dir.join(FILE)) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        // The version first: a later format may have other fields.
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let damaged = |e: serde_json::Error| IdentityError::Damaged(e.to_string());
        let Version { format_version } = serde_json::from_slice(&text).map_err(damaged)?;
        if format_version != FORMAT_VERSION {
            return Err(IdentityError::Format(format_version));
        }
        let Stored { identity, checksum } = serde_json::from_slice(&text).map_err(damaged)?;
        if checksum != identity.checksum()? {
            return Err(IdentityError::Damaged("it fails its checksum".to_owned()));
        }
        if !valid_name(&identity.name) {
            return Err(IdentityError::Damaged(format!("{:?} is not a server's name", identity.name)));
        }
        if identity.node_id == 0 || !valid_cluster_id(&identity.cluster_id) {
            return Err(IdentityError::Damaged("its cluster id or node id is not one".to_owned()));
        }
        Ok(Some(identity))
    }

    /// Writes the identity into `dir`, atomically and durably.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let stored = Stored { identity: self.clone(), checksum: self.checksum()? };
        let text = serde_json::to_string_pretty(&stored)? + "\n";
        files::write_atomically(&dir.join(FILE), text.as_bytes())
    }

    /// Over the fields, not the file's bytes: who pretty-prints the file does no harm.
    fn checksum(&self) -> io::Result<String> {
        Ok(format!("{:08x}", crc32fast::hash(&serde_json::to_vec(self)?)))
    }
}

/// A name: 1 to 64 letters, digits, `-`, `_` or `.`, so that it is safe in paths, URLs and tables.
pub fn valid_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn valid_cluster_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            cluster_id: "0123456789abcdef0123456789abcdef".to_owned(),
            node_id: 3,
            name: "S1".to_owned(),
            format_version: FORMAT_VERSION,
            seeds: Vec::new(),
            services: Vec::new(),
        }
    }

    #[test]
    fn round_trip_and_absence() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Identity::read(dir.path()).unwrap(), None);
        identity().write(dir.path()).unwrap();
        assert_eq!(Identity::read(dir.path()).unwrap(), Some(identity()));
    }

    #[test]
    fn another_format_and_damage_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), r#"{"format_version":9}"#).unwrap();
        assert!(matches!(Identity::read(dir.path()), Err(IdentityError::Format(9))));
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(matches!(Identity::read(dir.path()), Err(IdentityError::Damaged(_))));
        let mut bad = identity();
        bad.cluster_id.pop();
        bad.write(dir.path()).unwrap();
        assert!(matches!(Identity::read(dir.path()), Err(IdentityError::Damaged(_))));
    }
}
