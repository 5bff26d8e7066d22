//! How a benchmark program runs: criterion's measurements, then one table.

/// Runs `benches` and prints the table of `report`, or only one of the two: `QTUNNEL_BENCH_REPORT_ONLY=1` leaves the table,
/// `--list` and `--test` leave criterion.
pub fn run(benches: fn(), report: fn()) {
    let listing = std::env::args().any(|argument| argument == "--list" || argument == "--test");
    if std::env::var_os("QTUNNEL_BENCH_REPORT_ONLY").is_none() {
        benches();
        criterion::Criterion::default().configure_from_args().final_summary();
    }
    if !listing {
        report();
    }
}
