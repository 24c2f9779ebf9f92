//! Damage to a snapshot file.

use super::*;

pub(super) async fn snapshot_cases() -> Tally {
    let server = scratch();
    let (disk, _machine) = support::server_with(server.path(), 25).await;
    let (file, meta) = disk.state.snapshot_file().await.unwrap();
    let good = std::fs::read(&file).unwrap();
    let dir = scratch();
    let copied = dir.path().join("copy.snapshot");
    let base = Base::open(&dir.path().join("state")).unwrap();
    let mut tally = Tally::default();
    let mut rng = Rng(7);
    let mut damages: Vec<Damage> =
        (0..good.len()).map(|at| Damage::Flip { at, bit: rng.below(8) as u8 }).collect();
    // The first frame and the beginning of the second: lengths, checksums, position.
    damages.extend((0..400).flat_map(|at| (0..8).map(move |bit| Damage::Flip { at, bit })));
    damages.extend((0..good.len()).step_by(7).map(|to| Damage::Cut { to }));
    damages.extend((good.len() - 40..good.len()).map(|to| Damage::Cut { to }));
    damages.extend(
        (0..good.len()).step_by(4096).map(|from| Damage::Zero { from, to: (from + 4096).min(good.len()) }),
    );
    damages.extend([Damage::Append(vec![0]), Damage::Append(vec![0; 8]), Damage::Append(vec![7; 5000])]);
    for damage in damages {
        say("snapshot", &file, &damage);
        damage.apply(&copied, &good);
        let error = snapshot::load(&copied, &base).expect_err("a damaged snapshot was taken");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
        tally.refused += 1;
    }
    std::fs::write(&copied, &good).unwrap();
    assert_eq!(snapshot::load(&copied, &base).unwrap(), meta);
    tally.intact += 1;
    tally
}
