//! What opening makes of files that end early, are missing, or have changed.

use super::*;

fn refused(dir: &TempDir) -> io::Error {
    match open_behind(dir, &LogMark::default()) {
        Ok(_) => panic!("a damaged log was opened"),
        Err(e) => e,
    }
}

fn cut(file: &std::path::Path, bytes: u64) {
    let file = OpenOptions::new().write(true).open(file).unwrap();
    file.set_len(file.metadata().unwrap().len() - bytes).unwrap();
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    append(&mut log, entries(1, 0..10)).await;
    drop(log);
    let file = files(&dir).pop().unwrap();
    let size = file.metadata().unwrap().len();
    cut(&file, 7);
    let (mut log, torn) = open_behind(&dir, &LogMark::default()).unwrap();
    assert_eq!(torn.len(), 1);
    assert_eq!(torn[0].file, file);
    assert!(torn[0].bytes > 0 && file.metadata().unwrap().len() + torn[0].bytes == size - 7);
    assert_eq!(ids(&log), expected(1, 0..9));
    append(&mut log, entries(2, 9..12)).await;
    drop(log);
    assert_eq!(ids(&open(&dir)), [expected(1, 0..9), expected(2, 9..12)].concat());
}

#[tokio::test]
async fn zeros_at_the_end_are_a_torn_tail_and_zeros_before_it_are_damage() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    append(&mut log, entries(1, 0..10)).await;
    drop(log);
    let file = files(&dir).pop().unwrap();
    let whole = std::fs::read(&file).unwrap();
    let mut longer = whole.clone();
    longer.resize(whole.len() + 5_000, 0);
    std::fs::write(&file, &longer).unwrap();
    let (log, torn) = open_behind(&dir, &LogMark::default()).unwrap();
    assert_eq!(torn[0].bytes, 5_000);
    assert_eq!(ids(&log), expected(1, 0..10));
    drop(log);

    let middle = whole.len() / 2;
    let mut holed = whole;
    holed[middle..middle + 200].fill(0);
    std::fs::write(&file, &holed).unwrap();
    for newer in files(&dir).into_iter().filter(|other| *other > file) {
        std::fs::remove_file(newer).unwrap();
    }
    assert_eq!(refused(&dir).kind(), io::ErrorKind::InvalidData);
    assert_eq!(std::fs::read(&file).unwrap(), holed, "the damaged file was changed");
}

#[tokio::test]
async fn a_mark_refuses_a_log_that_lost_entries_votes_or_truncations() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    append(&mut log, entries(1, 0..10)).await;
    let earlier = copy_of(&dir);
    log.save_vote(&vote(5)).await.unwrap();
    log.truncate_after(Some(log_id(1, 7))).await.unwrap();
    let mark = log.sync().await.unwrap();

    let error = refused_behind(&earlier, &mark);
    assert!(error.contains(&mark.end.to_string()) && error.contains("lost"), "{error}");

    // The truncation alone is lost: the log ends with more entries, yet earlier.
    let tail = copy_of(&dir);
    let file = files(&tail).pop().unwrap();
    cut(&file, 3);
    let before = std::fs::read(&file).unwrap();
    // Refused again and again, and nothing is changed: a second attempt must not get through.
    for _ in 0..3 {
        refused_behind(&tail, &mark);
        assert_eq!(std::fs::read(&file).unwrap(), before);
    }
    let (cut_log, torn) = open_behind(&tail, &LogMark::default()).unwrap();
    assert_eq!((torn.len(), cut_log.range()), (1, Some((0, 9))), "without the mark it is a torn tail");
}

fn refused_behind(dir: &TempDir, mark: &LogMark) -> String {
    match open_behind(dir, mark) {
        Ok(_) => panic!("a log that ends before the mark was opened"),
        Err(e) => {
            assert_eq!(e.kind(), io::ErrorKind::InvalidData);
            e.to_string()
        }
    }
}

#[tokio::test]
async fn a_mark_accepts_a_log_that_was_truncated_or_purged_since() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    append(&mut log, entries(1, 0..10)).await;
    let mark = log.sync().await.unwrap();
    log.truncate_after(Some(log_id(1, 4))).await.unwrap();
    log.purge(log_id(1, 3)).await.unwrap();
    let later = log.sync().await.unwrap();
    assert!(later.last < mark.last && later.end > mark.end);
    drop(log);
    for mark in [&mark, &later] {
        let (log, _) = open_behind(&dir, mark).unwrap();
        assert_eq!(ids(&log), expected(1, 4..5));
    }
}

#[tokio::test]
async fn a_missing_file_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    append(&mut log, (0..100).map(|index| entry_of(1, index, 300)).collect()).await;
    let mark = log.sync().await.unwrap();
    drop(log);
    let all = files(&dir);
    assert!(all.len() > 4);
    for (number, file) in all.iter().enumerate() {
        let copy = copy_of(&dir);
        std::fs::remove_file(copy.path().join(file.file_name().unwrap())).unwrap();
        match open_behind(&copy, &mark) {
            Ok(_) => panic!("file {number} of {} is missing, unnoticed", all.len()),
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::InvalidData, "{e}"),
        }
    }
}

#[tokio::test]
async fn the_only_file_is_never_taken_for_a_torn_tail() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(&dir);
    log.save_vote(&vote(4)).await.unwrap();
    drop(log);
    std::fs::write(files(&dir).pop().unwrap(), b"").unwrap();
    assert_eq!(refused(&dir).kind(), io::ErrorKind::InvalidData);
}
