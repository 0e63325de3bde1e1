//! Ten people, one smartwatch model each, one adapter each.
//!
//! Each person calibrates a base that never saw them, on the first quarter of their recordings; what comes later is
//! classified by the base, with their own adapter, and with another person's.

/// The figures as a picture.
pub mod chart;
/// The recordings, and the windows cut from them.
pub mod data;
/// One person's figures, as a table and as JSON.
pub mod report;
/// The demo itself: exports, trains, classifies.
pub mod run;
