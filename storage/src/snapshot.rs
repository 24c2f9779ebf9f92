//! A snapshot: the tables at a flush as one checksummed file.
//!
//! Layout: a magic, then frames `length u32, CRC-32 u32, content`. The first frame is the
//! [`FlushMeta`], the last is empty and says by being there that nothing is missing, the ones
//! between hold rows `key length u32, key, value length u32, value`. Numbers are little-endian.
//! Writing and reading take bounded memory. The rows' hash, which the meta names, is checked at
//! the end, so a snapshot that lacks a row is refused even if every frame is whole.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::ops::Bound;
use std::path::Path;

use crate::codec;
use crate::files;
use crate::tables::base::{Base, FlushMeta};
use crate::tables::rows::row_hash;

const MAGIC: &[u8; 8] = b"QRSNAP\x00\x01";
/// Rows are gathered into frames of about this size.
const FRAME_BYTES: usize = 256 << 10;
/// A row is at most this large, hence a frame too.
const MAX_FRAME_BYTES: usize = 80 << 20;

/// Writes the rows of `base`, which are those of the flush `meta`, to `path`, atomically and durably.
///
/// The caller sees to it that no flush runs meanwhile.
///
/// # Errors
/// As the disk gives them; `InvalidData` when the rows do not have the hash that `meta` names. Then nothing is left.
pub fn write(path: &Path, base: &Base, meta: &FlushMeta) -> io::Result<()> {
    let temp = path.with_extension("tmp");
    let written = write_rows(&temp, base, meta).and_then(|()| std::fs::rename(&temp, path));
    if written.is_err() {
        // It takes room that others may need; the error says more than one of the removal would.
        let _ = std::fs::remove_file(&temp);
    }
    written?;
    files::sync_parent(path)
}

/// About how many bytes [`write()`] would write: the rows are counted, because in the store they are compressed, and what
/// was deleted may still take room there.
///
/// # Errors
/// When a row cannot be read.
pub fn size(base: &Base) -> io::Result<u64> {
    base.range(Bound::Unbounded, Bound::Unbounded).try_fold(0, |sum, row| {
        let (key, value) = row?;
        Ok(sum + (key.len() + value.len() + 2 * size_of::<u32>()) as u64)
    })
}

fn write_rows(path: &Path, base: &Base, meta: &FlushMeta) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    out.write_all(MAGIC)?;
    write_frame(&mut out, &codec::encode(meta))?;
    let mut frame = Vec::with_capacity(FRAME_BYTES * 2);
    let mut hash = 0u128;
    for row in base.range(Bound::Unbounded, Bound::Unbounded) {
        let (key, value) = row?;
        hash = hash.wrapping_add(row_hash(&key, &value));
        push_bytes(&mut frame, &key);
        push_bytes(&mut frame, &value);
        if frame.len() >= FRAME_BYTES {
            write_frame(&mut out, &frame)?;
            frame.clear();
        }
    }
    if hash != meta.hash {
        return Err(damaged("the tables do not have the hash of their last flush"));
    }
    if !frame.is_empty() {
        write_frame(&mut out, &frame)?;
    }
    write_frame(&mut out, &[])?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()
}

/// Reads the position of a snapshot.
///
/// # Errors
/// `InvalidData` when the file is not a snapshot, or is damaged at its beginning.
pub fn read_meta(path: &Path) -> io::Result<FlushMeta> {
    Reader::open(path).map(|reader| reader.meta)
}

/// Reads a whole snapshot and checks it; gives its position.
///
/// # Errors
/// `InvalidData` when the snapshot is damaged or incomplete.
pub fn verify(path: &Path) -> io::Result<FlushMeta> {
    read_rows(path, |_| Ok(()))
}

/// Fills the empty store `base` with the snapshot's rows; does not make them durable.
///
/// # Errors
/// `InvalidData` when the snapshot is damaged or incomplete: then the store is of no use.
pub fn load(path: &Path, base: &Base) -> io::Result<FlushMeta> {
    read_rows(path, |rows| base.fill(rows.into_iter()))
}

fn read_rows(
    path: &Path,
    mut each: impl FnMut(Vec<(&[u8], &[u8])>) -> io::Result<()>,
) -> io::Result<FlushMeta> {
    let mut reader = Reader::open(path)?;
    let mut hash = 0u128;
    while let Some(frame) = reader.next_frame()? {
        let mut rows = Vec::new();
        let mut rest = &frame[..];
        while !rest.is_empty() {
            let key = take_bytes(&mut rest)?;
            let value = take_bytes(&mut rest)?;
            hash = hash.wrapping_add(row_hash(key, value));
            rows.push((key, value));
        }
        each(rows)?;
    }
    if hash != reader.meta.hash {
        return Err(damaged("the rows do not have the hash that the snapshot names"));
    }
    Ok(reader.meta)
}

struct Reader {
    file: BufReader<File>,
    meta: FlushMeta,
}

impl Reader {
    fn open(path: &Path) -> io::Result<Self> {
        let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
        let mut magic = [0; 8];
        file.read_exact(&mut magic).map_err(short)?;
        if &magic != MAGIC {
            return Err(damaged("not a snapshot of this version"));
        }
        let frame = read_frame(&mut file)?.ok_or_else(|| damaged("the snapshot has no position"))?;
        let meta = codec::decode(&frame).map_err(|e| damaged(&format!("its position: {e}")))?;
        Ok(Self { file, meta })
    }

    /// The next frame of rows; `None` at the end mark, behind which nothing may follow.
    fn next_frame(&mut self) -> io::Result<Option<Vec<u8>>> {
        if let Some(frame) = read_frame(&mut self.file)? {
            return Ok(Some(frame));
        }
        match self.file.read(&mut [0; 1])? {
            0 => Ok(None),
            _ => Err(damaged("something follows the snapshot's end")),
        }
    }
}

fn write_frame(out: &mut impl Write, content: &[u8]) -> io::Result<()> {
    let length = u32::try_from(content.len()).map_err(|_| damaged("a frame is too large"))?;
    let length = length.to_le_bytes();
    let mut crc = crc32fast::Hasher::new();
    crc.update(&length);
    crc.update(content);
    out.write_all(&length)?;
    out.write_all(&crc.finalize().to_le_bytes())?;
    out.write_all(content)
}

fn read_frame(file: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut header = [0; 8];
    file.read_exact(&mut header).map_err(short)?;
    let [l0, l1, l2, l3, c0, c1, c2, c3] = header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(damaged("a frame claims too many bytes"));
    }
    let mut content = Vec::new();
    // Grows with what is there: a damaged length must not allocate.
    let read = file.take(length as u64).read_to_end(&mut content)?;
    if read != length {
        return Err(damaged("the snapshot ends in the middle of a frame"));
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[..4]);
    crc.update(&content);
    if crc.finalize() != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(damaged("a frame fails its checksum"));
    }
    Ok((length > 0).then_some(content))
}

fn push_bytes(frame: &mut Vec<u8>, bytes: &[u8]) {
    frame.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    frame.extend_from_slice(bytes);
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> io::Result<&'a [u8]> {
    let malformed = || damaged("a row is malformed");
    let (length, tail) = rest.split_at_checked(4).ok_or_else(malformed)?;
    let length = u32::from_le_bytes(length.try_into().map_err(|_| malformed())?) as usize;
    let (bytes, tail) = tail.split_at_checked(length).ok_or_else(malformed)?;
    *rest = tail;
    Ok(bytes)
}

fn short(e: io::Error) -> io::Error {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => damaged("the snapshot is cut short"),
        _ => e,
    }
}

fn damaged(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}
