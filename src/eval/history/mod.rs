//! Results of many evaluations: an index of folders, metrics over dates, mean and spread over runs of one recipe.
//!
//! `index`: what is kept of each evaluation, in a file that can be made again from the folders. `series`: one metric of the same questions
//! over dates, and whether its level changed. `seeds`: mean and spread over runs. `page`: a page with pictures. No model is loaded.

pub mod index;
pub mod page;
pub mod seeds;
pub mod series;
