use inlay_format::kinds::PROMPT;
use inlay_format::points::MAX_RANK;

use super::{Adapter, AdapterError, AdapterKind, Insertion, Settings, Site, Size};
use crate::base::Base;
use crate::plan::table_row;
use crate::random::Random;

/// Prompt tuning (Lester et al., 2021): virtual tokens before the embedded words.
///
/// Attention sees them, positions count them, and a pooler that takes the first position takes the first of them, as with
/// PEFT. Every run costs as much as sequences that are longer by their number. They start at random (see
/// [`Adapter::prompt_from_tokens`] for real words).
pub struct Prompt;

/// The kind id of prompts. A point's tensor is `[p, d]`.
const PROMPT_KIND: u16 = 9;

/// Bound of the uniform start, of the size of word embeddings.
const START: f32 = 0.05;

impl AdapterKind for Prompt {
    fn name(&self) -> &'static str {
        PROMPT
    }

    fn id(&self) -> u16 {
        PROMPT_KIND
    }

    fn size(&self) -> Option<Size> {
        Some(Size { name: "length", default: 8, max: MAX_RANK as u16 })
    }

    fn is_scaled(&self) -> bool {
        false
    }

    fn way_out(&self) -> &'static str {
        "export it with --kinds prompt"
    }

    fn sites(&self, base: &Base) -> Vec<Site> {
        Site::offered(base, PROMPT)
    }

    fn insertion(&self, _: &Base, site: &Site, settings: &Settings) -> Result<Insertion, AdapterError> {
        Ok(Insertion::in_file(PROMPT, site, settings))
    }

    fn init(&self, _: &Site, insertion: &Insertion, _: &Settings, random: &mut Random) -> Vec<Vec<f32>> {
        let elements = insertion.parameters.iter().map(|parameter| parameter.elements());
        elements.map(|count| (0..count).map(|_| random.uniform(START)).collect()).collect()
    }

    fn scale_axis(&self, _: usize, _: &[usize]) -> Option<usize> {
        // A scale for each token.
        Some(0)
    }

    fn changes_nothing(&self, tensors: &[Vec<f32>]) -> bool {
        // Even tokens of zeros take part in attention.
        tensors.iter().all(Vec::is_empty)
    }
}

/// What only adapters with a prompt can do.
impl Adapter {
    /// The same adapter, its virtual tokens the embeddings of these ids, from the first again where there are more of them;
    /// ids beyond its length are left out.
    ///
    /// # Errors
    /// When it has no prompt, or an id is not in the table of `base`.
    pub fn prompt_from_tokens(mut self, base: &Base, ids: &[u32]) -> Result<Self, AdapterError> {
        if ids.is_empty() {
            return Err(AdapterError::NoTokens);
        }
        let part = self.parts.iter_mut().find(|part| part.kind.id() == PROMPT_KIND).ok_or(AdapterError::NoPrompt)?;
        for point in &mut part.points {
            let at = base.points().iter().find(|found| found.path == point.path).ok_or(AdapterError::NoPrompt)?;
            let (rows, d) = (at.d_in as usize, at.d_out as usize);
            for (token, &id) in point.tensors[0].chunks_exact_mut(d).zip(ids.iter().cycle()) {
                let row = (id as usize) < rows;
                let values = row.then(|| table_row(base.graph(), &at.node, id as usize)).flatten();
                token.copy_from_slice(&values.ok_or(AdapterError::UnknownToken { found: id, rows: at.d_in })?);
            }
        }
        Ok(self)
    }
}
