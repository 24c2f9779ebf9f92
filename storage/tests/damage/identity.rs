//! Damage to `identity.json`.

use super::*;

pub(super) fn identity_cases() -> Tally {
    let dir = scratch();
    let truth = identity(3);
    truth.write(dir.path()).unwrap();
    let file = dir.path().join("identity.json");
    let good = std::fs::read(&file).unwrap();
    let flips = (0..good.len()).flat_map(|at| (0..8).map(move |bit| Damage::Flip { at, bit }));
    let cuts = (0..good.len()).map(|to| Damage::Cut { to });
    let zeros =
        (0..good.len()).step_by(16).map(|from| Damage::Zero { from, to: (from + 16).min(good.len()) });
    let more = [
        Damage::Zero { from: 0, to: good.len() },
        Damage::Append(b"{}".to_vec()),
        Damage::Append(vec![0; 4096]),
    ];
    let mut tally = Tally::default();
    for damage in flips.chain(cuts).chain(zeros).chain(more) {
        say("identity", &file, &damage);
        damage.apply(&file, &good);
        match Identity::read(dir.path()) {
            Ok(found) => {
                assert_eq!(found.as_ref(), Some(&truth), "another identity, and nobody noticed");
                tally.intact += 1;
            }
            Err(_) => {
                let text = match node_disk::open(dir.path(), registry(), &options()) {
                    Ok(_) => panic!("opened"),
                    Err(e) => e.to_string(),
                };
                assert!(text.contains("identity.json") || text.contains("format version"), "{text}");
                assert!(text.contains("rejoin"), "{text}");
                tally.refused += 1;
            }
        }
    }
    assert!(tally.refused > 1_000);
    tally
}
