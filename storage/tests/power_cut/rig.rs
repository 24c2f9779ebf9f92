//! A disk whose power can be cut without hardware: ext4 in a loop-mounted file.
//!
//! `FS_IOC_SHUTDOWN` without a journal flush drops what is in the page cache and the journal, as a
//! power cut does. It does not model a drive's own cache.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes of the file system.
const SIZE: u64 = 192 << 20;

pub(crate) struct Rig {
    root: PathBuf,
    mounted: bool,
    /// The disk's number.
    disk: u32,
    /// Of the mount.
    options: &'static str,
}

/// Why there can be no rig here, if so.
fn unavailable() -> Option<String> {
    if std::fs::metadata("/proc/self").map_or(1, |me| me.uid()) != 0 {
        return Some("needs root (to mount)".to_owned());
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some("needs loop devices (/dev/loop-control is missing)".to_owned());
    }
    match Command::new("mkfs.ext4").arg("-V").stderr(Stdio::null()).status() {
        Ok(status) if status.success() => None,
        _ => Some("needs mkfs.ext4".to_owned()),
    }
}

impl Rig {
    /// A rig in a new directory; what dead processes left is swept away. Without what it needs, it says so,
    /// and there is none.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let made = match unavailable() {
            Some(reason) => Err(reason),
            None => Self::make(Path::new(env!("CARGO_TARGET_TMPDIR")), name),
        };
        // Not by a macro, whose output a test runner keeps to itself when a test passes.
        let tell = |why: &String| {
            let _ = writeln!(
                std::io::stderr(),
                "\n*** SKIPPED: the power-cut test {why}. Nothing was tested. ***\n"
            );
        };
        made.inspect_err(tell).ok()
    }

    fn make(parent: &Path, name: &str) -> Result<Self, String> {
        sweep(parent);
        let root = parent.join(format!("power-cut-{}-{name}", std::process::id()));
        std::fs::create_dir_all(root.join("mnt")).map_err(|e| e.to_string())?;
        std::fs::create_dir_all(root.join("scratch")).map_err(|e| e.to_string())?;
        let mut rig = Self { root, mounted: false, disk: 0, options: "data=ordered" };
        // Tells a machine that may not mount from a test that fails.
        rig.format()?;
        rig.mount()?;
        Ok(rig)
    }

    pub(crate) fn mount_point(&self) -> PathBuf {
        self.root.join("mnt")
    }

    /// A directory on a disk that keeps its power.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    fn image(&self) -> PathBuf {
        self.root.join(format!("disk-{}.img", self.disk))
    }

    /// A new, empty file system, mounted.
    pub(crate) fn renew(&mut self, options: &'static str) {
        self.unmount();
        self.options = options;
        let _ = std::fs::remove_file(self.image());
        // Under a new name: a loop device that lingers would bring the old contents back.
        self.disk += 1;
        self.format().unwrap();
        self.mount().unwrap();
    }

    fn format(&self) -> Result<(), String> {
        let image = self.image();
        let file = File::create(&image).map_err(|e| e.to_string())?;
        file.set_len(SIZE).map_err(|e| e.to_string())?;
        run("mkfs.ext4", &["-q", "-F", &image.to_string_lossy()])
    }

    pub(crate) fn mount(&mut self) -> Result<(), String> {
        let (image, point) = (self.image(), self.mount_point());
        let options = format!("loop,{}", self.options);
        // Another mount can take the loop device that was free a moment ago.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let point = point.to_string_lossy();
            match run("mount", &["-t", "ext4", "-o", &options, &image.to_string_lossy(), &point]) {
                Err(e) if e.contains("loop device") && Instant::now() < deadline => {}
                done => break done?,
            }
        }
        self.mounted = true;
        Ok(())
    }

    pub(crate) fn cut_the_power(&self) {
        /// Drop everything that is not on disk, the journal too.
        const NO_LOG_FLUSH: u32 = 2;
        const FS_IOC_SHUTDOWN: rustix::ioctl::Opcode = 0x8004_587D;
        let root = File::open(self.mount_point()).unwrap();
        #[expect(unsafe_code, reason = "rustix cannot know what an opcode takes; this one takes a u32")]
        unsafe {
            let shutdown = rustix::ioctl::Setter::<FS_IOC_SHUTDOWN, u32>::new(NO_LOG_FLUSH);
            rustix::ioctl::ioctl(&root, shutdown).unwrap();
        }
    }

    /// Waits for the last user to be gone. The loop device goes with the mount.
    pub(crate) fn unmount(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.mounted {
            match run("umount", &[&self.mount_point().to_string_lossy()]) {
                Ok(()) => self.mounted = false,
                Err(e) => assert!(Instant::now() < deadline, "{e}"),
            }
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // For whoever looks for the cause.
            let kept = self.root.with_file_name("power-cut-failed");
            let _ = std::fs::remove_dir_all(&kept);
            let _ = run("cp", &["-a", &self.mount_point().to_string_lossy(), &kept.to_string_lossy()]);
            let _ = run(
                "cp",
                &["-a", &self.scratch().join("journal").to_string_lossy(), &kept.to_string_lossy()],
            );
        }
        if self.mounted && run("umount", &[&self.mount_point().to_string_lossy()]).is_err() {
            let _ = run("umount", &["-l", &self.mount_point().to_string_lossy()]);
        }
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

fn sweep(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix("power-cut-").and_then(|rest| rest.split('-').next()) else {
            continue;
        };
        if pid != "failed" && !Path::new("/proc").join(pid).exists() {
            let _ = run("umount", &["-l", &entry.path().join("mnt").to_string_lossy()]);
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}
