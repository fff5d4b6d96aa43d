//! The engine's errors: a stable code for programs and a sentence for people.

use std::fmt;

/// Every failure that the engine reports deliberately. The payload is the full message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// An argument is invalid: a shape, a range, an element type.
    InvalidArgument(String),
    /// The engine's memory can't hold the allocation.
    OutOfMemory(String),
    /// A handle that was disposed, or never existed.
    Disposed(String),
    /// A valid request that this build can't serve.
    Unsupported(String),
    /// The device is lost or can no longer be trusted: only a new engine helps.
    EngineDead(String),
    /// Unusable weights: values that aren't finite or are too large for the storage type.
    InvalidCheckpoint(String),
}

/// The engine's result type.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The stable code, which `VitMsnError.code` holds in JavaScript.
    pub fn code(&self) -> &'static str {
        match self {
            Error::InvalidArgument(_) => "INVALID_ARGUMENT",
            Error::OutOfMemory(_) => "OUT_OF_MEMORY",
            Error::Disposed(_) => "DISPOSED",
            Error::Unsupported(_) => "UNSUPPORTED",
            Error::EngineDead(_) => "ENGINE_DEAD",
            Error::InvalidCheckpoint(_) => "INVALID_CHECKPOINT",
        }
    }

    /// OUT_OF_MEMORY for an allocation of `count` elements of `size` bytes.
    pub fn out_of_memory(count: usize, size: usize) -> Self {
        let bytes = count as u128 * size as u128;
        Error::OutOfMemory(format!(
            "The engine can't allocate {bytes} bytes: use a smaller batch or image, a half-width dtype, or dispose models that are no longer used."
        ))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::InvalidArgument(message)
            | Error::OutOfMemory(message)
            | Error::Disposed(message)
            | Error::Unsupported(message)
            | Error::EngineDead(message)
            | Error::InvalidCheckpoint(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_facades_words_and_display_is_the_sentence() {
        let sentence = || "A sentence.".to_string();
        let cases = [
            (Error::InvalidArgument(sentence()), "INVALID_ARGUMENT"),
            (Error::OutOfMemory(sentence()), "OUT_OF_MEMORY"),
            (Error::Disposed(sentence()), "DISPOSED"),
            (Error::Unsupported(sentence()), "UNSUPPORTED"),
            (Error::EngineDead(sentence()), "ENGINE_DEAD"),
            (Error::InvalidCheckpoint(sentence()), "INVALID_CHECKPOINT"),
        ];
        for (error, code) in cases {
            assert_eq!(error.code(), code);
            assert_eq!(error.to_string(), "A sentence.");
        }
    }
}
