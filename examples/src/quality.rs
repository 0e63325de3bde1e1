//! Quality against bytes: what each adapter kind gains on real data, at which size of its record.
//!
//! A `case::Case` is data of several people and models that never saw them; its families of adapters are trained for
//! each person and seed, stored at each payload dtype, opened again and tested.

/// What is measured on: people, models, families of adapters.
pub mod case;
/// The cases that there are.
pub mod cases;
/// The figures as a picture.
pub mod chart;
/// What a case's folder holds.
pub mod data;
/// Classes that come later.
pub mod enrolment;
/// The figures: as JSON, and what is computed of them.
pub mod figures;
/// The figures as a page.
pub mod page;
/// Trains, stores, opens, tests.
pub mod sweep;
