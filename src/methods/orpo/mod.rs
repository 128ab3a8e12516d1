pub mod loss;
pub mod spec;
