//! A small disk of its own: ext4 in a loop-mounted file. Needs root.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Unmounted, and its loop device given back, when dropped.
#[derive(Debug)]
pub(crate) struct Mount {
    root: TempDir,
}

impl Mount {
    /// A new, empty file system of so many bytes; or why there can be none here.
    pub(crate) fn new(bytes: u64) -> Result<Self, String> {
        let root = tempfile::Builder::new().prefix("disk-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let root = root.map_err(|e| e.to_string())?;
        let image = root.path().join("disk.img");
        File::create(&image).and_then(|file| file.set_len(bytes)).map_err(|e| e.to_string())?;
        run("mkfs.ext4", &["-q", "-F", "-m", "0"], &[&image])?;
        fs::create_dir(root.path().join("mnt")).map_err(|e| e.to_string())?;
        // The loop device goes with the mount.
        run("mount", &["-t", "ext4", "-o", "loop"], &[&image, &root.path().join("mnt")])?;
        Ok(Self { root })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.root.path().join("mnt")
    }

    /// Fills the disk with a file until so many bytes are left, as somebody else's log would.
    pub(crate) fn fill(&self, left: u64) {
        let mut file = File::create(self.filler()).expect("a file on the small disk");
        // The room of files that were removed a moment ago comes back with the journal's next commit.
        run("sync", &["-f"], &[&self.path()]).expect("the removals on disk");
        let chunk = vec![7; 256 << 10];
        while self.free() > left + chunk.len() as u64 {
            file.write_all(&chunk).expect("room for the filling");
            // Else what is free would not tell.
            file.sync_all().expect("the filling on disk");
        }
    }

    pub(crate) fn empty(&self) {
        fs::remove_file(self.filler()).expect("the filling");
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filling")
    }

    pub(crate) fn free(&self) -> u64 {
        quorate_storage::node_disk::free_bytes(&self.path()).expect("what is free on the small disk")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A process that was killed a moment ago may still hold it.
        let deadline = Instant::now() + Duration::from_secs(10);
        while run("umount", &[], &[&self.path()]).is_err() {
            if Instant::now() > deadline {
                let _ = run("umount", &["-l"], &[&self.path()]);
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn run(program: &str, words: &[&str], paths: &[&Path]) -> Result<(), String> {
    let output = Command::new(program).args(words).args(paths).output();
    let output = output.map_err(|e| format!("{program}: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
