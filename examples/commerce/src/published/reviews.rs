//! Customer reviews as JSON lines (Hu & Liu 2004; Ding, Liu & Yu 2008).

use serde::Deserialize;

/// A line of the file. Members that the shop has no use for (the annotators' opinions) are passed over.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PublishedReview {
    /// Name of the product that was reviewed.
    pub product: String,
    /// Headline; may be empty.
    pub title: String,
    /// The review.
    pub body: String,
    /// 1 to 5, derived from the annotators' opinions by the file's publisher.
    pub stars: u8,
}

impl PublishedReview {
    /// Whether it is about a product of this name: the same words, whatever their case and what stands between them. Nothing
    /// looser: a review shown with the wrong product is worse than none.
    #[must_use]
    pub fn is_about(&self, name: &str) -> bool {
        let words = |text: &str| -> Vec<String> {
            text.split(|c: char| !c.is_alphanumeric())
                .filter(|w| !w.is_empty())
                .map(str::to_lowercase)
                .collect()
        };
        words(&self.product) == words(name)
    }
}

pub(super) fn reviews(text: &[u8]) -> Result<Vec<PublishedReview>, (u64, String)> {
    let lines = text.split(|&b| b == b'\n').zip(1..);
    lines
        .filter(|(line, _)| !line.trim_ascii().is_empty())
        .map(|(line, number)| {
            let review: PublishedReview =
                serde_json::from_slice(line).map_err(|e| (number, e.to_string()))?;
            if (1..=5).contains(&review.stars) {
                Ok(review)
            } else {
                Err((number, format!("stars must be 1 to 5, not {}", review.stars)))
            }
        })
        .collect()
}
