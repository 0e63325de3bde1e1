//! Demonstrations of Inlay on real data.
