//! The services, driven through real machines: golden scripts, a model, the stored bytes, the sources.

mod batches;
mod chat_model;
mod exchange_model;
mod jobs_model;
mod model;
mod replicas;
mod script;
mod sources;
mod stored_bytes;

/// Each script is a page of `POST service/command {…}` and `GET service/query?…` as over HTTP, with what
/// came of it. After a change: `UPDATE_GOLDENFILES=1 cargo test services`, then read the difference.
macro_rules! scripts {
    ($($name:ident),+ $(,)?) => {$(
        #[test]
        fn $name() {
            let path = concat!("src/services/testdata/", stringify!($name));
            goldenscript::run(&mut script::Runner::new(), path).unwrap();
        }
    )+};
}

scripts!(
    chat,
    chat_limits,
    chat_retention,
    chat_sessions,
    counter,
    counter_list,
    exchange,
    exchange_catalog,
    exchange_limits,
    exchange_times,
    jobs,
    jobs_attempts,
    jobs_cancel,
    jobs_keys,
    jobs_leases,
    jobs_limits,
    jobs_refusals,
    jobs_ring,
    register,
    register_sizes,
    register_list,
    malformed
);
