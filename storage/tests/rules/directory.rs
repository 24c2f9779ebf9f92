//! A server's directory: made, incomplete, another's, in use.

use quorate_storage::FORMAT_VERSION;

use super::*;

#[tokio::test]
async fn making_a_directory_can_be_interrupted_anywhere() {
    let whole = tempfile::tempdir().unwrap();
    create(whole.path()).await;
    // The order in which `create` makes things; each prefix is what a crash leaves.
    for made in 0..=3 {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("incomplete"), b"").unwrap();
        if made > 0 {
            copy(&whole.path().join("state-1"), &dir.path().join("state-1"));
        }
        if made > 1 {
            std::os::unix::fs::symlink("state-1", dir.path().join("state")).unwrap();
        }
        if made > 2 {
            copy(&whole.path().join("log"), &dir.path().join("log"));
            std::fs::write(dir.path().join("identity.tmp"), b"{").unwrap();
        }
        assert!(!node_disk::inhabited(dir.path()).unwrap(), "{made}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{made}: something was left");
        create(dir.path()).await;
        assert!(open(dir.path()).is_ok());
    }
    // With the identity it is whole: only the marker is left over.
    std::fs::write(whole.path().join("incomplete"), b"").unwrap();
    assert!(node_disk::inhabited(whole.path()).unwrap());
    assert_eq!(read_all(&open(whole.path()).unwrap().log).len(), 1);
    assert!(!whole.path().join("incomplete").exists());
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test]
async fn a_directory_with_anything_in_it_is_not_made_a_servers() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("letter"), b"dear").unwrap();
    for result in [
        node_disk::create(dir.path(), &identity(1), Some(info(1))).await,
        node_disk::inhabited(dir.path()).map(|_| ()),
        node_disk::open(dir.path(), registry(), &options()).map(|_| ()),
    ] {
        let Err(error @ DiskError::NotEmpty(_)) = result else { panic!("{result:?}") };
        assert!(error.to_string().contains("empty directory"), "{error}");
    }
    assert_eq!(std::fs::read(dir.path().join("letter")).unwrap(), b"dear");
    // Twice the same directory, too.
    let dir = tempfile::tempdir().unwrap();
    create(dir.path()).await;
    let again = node_disk::create(dir.path(), &identity(2), None).await;
    assert!(matches!(again, Err(DiskError::NotEmpty(_))));
    assert_eq!(open(dir.path()).unwrap().identity, identity(1));
}

#[tokio::test]
async fn an_identity_without_its_log_or_state_is_refused_with_the_remedy() {
    type Remove = fn(&Path);
    let remove: [(&str, Remove); 6] = [
        ("log", |dir| std::fs::remove_dir_all(dir.join("log")).unwrap()),
        ("log", |dir| {
            std::fs::remove_dir_all(dir.join("log")).unwrap();
            std::fs::create_dir(dir.join("log")).unwrap();
        }),
        ("state", |dir| {
            std::fs::remove_dir_all(dir.join("state-1")).unwrap();
            std::fs::create_dir(dir.join("state-1")).unwrap();
        }),
        ("state", |dir| std::fs::remove_file(dir.join("state")).unwrap()),
        ("state", |dir| std::fs::remove_dir_all(dir.join("state-1")).unwrap()),
        ("state", |dir| {
            std::fs::remove_file(dir.join("state")).unwrap();
            std::fs::remove_dir_all(dir.join("state-1")).unwrap();
        }),
    ];
    for (missing, remove) in remove {
        let dir = tempfile::tempdir().unwrap();
        let (disk, mut machine) = server_with(dir.path(), 5).await;
        machine.build_snapshot().await.unwrap();
        drop((disk, machine));
        remove(dir.path());
        let text = refusal(open(dir.path())).to_string();
        assert!(text.contains(missing) && text.contains("rejoin") && text.contains("--join"), "{text}");
        assert!(text.contains(&*dir.path().to_string_lossy()), "{text}");
        // And again: nothing was made in its place.
        refusal(open(dir.path()));
    }
}

#[tokio::test]
async fn another_format_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path()).await;
    let file = dir.path().join("identity.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let own = format!("\"format_version\": {FORMAT_VERSION}");
    std::fs::write(&file, text.replace(&own, "\"format_version\": 1")).unwrap();
    let text = refusal(open(dir.path())).to_string();
    let wanted = format!("reads version {FORMAT_VERSION}");
    assert!(text.contains("format version 1") && text.contains(&wanted), "{text}");
}

#[tokio::test]
async fn a_build_that_lacks_one_of_the_servers_services_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let made_with = Identity { services: vec!["chat".to_owned()], ..identity(1) };
    node_disk::create(dir.path(), &made_with, None).await.unwrap();
    let refused = refusal(open(dir.path()));
    assert!(matches!(&refused, DiskError::Services { lacks, .. } if lacks == "chat"), "{refused}");
}

#[tokio::test]
async fn a_second_opening_in_this_process_is_told_that_it_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (_disk, _machine) = server_with(dir.path(), 5).await;
    assert!(matches!(refusal(open(dir.path())), DiskError::InUse(_)));
}

#[tokio::test]
async fn a_directory_that_another_process_holds_is_told_to_be_in_use() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path()).await;
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "directory::holder_process", "--ignored", "--nocapture"])
        .env("QUORATE_HELD_DIR", dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "held"), "the holder did not get so far");
    let error = refusal(open(dir.path()));
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
    let text = error.to_string();
    assert!(matches!(error, DiskError::InUse(_)) && text.contains("Stop that server first"), "{text}");
    assert!(open(dir.path()).is_ok());
}

/// The other process of the test above.
#[tokio::test]
#[ignore = "not a test: another test runs it as a process of its own"]
async fn holder_process() {
    let dir: PathBuf = std::env::var_os("QUORATE_HELD_DIR").expect("set by the test").into();
    let _disk = open(&dir).unwrap();
    println!("\nheld");
    // Until the parent lets go.
    let _ = std::io::stdin().read_line(&mut String::new());
}
