//! All YAML goes through here, so that the library below can be changed in one place.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A text that is not the YAML asked for, or a value that YAML cannot carry.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct YamlError(#[from] serde_yaml::Error);

/// Reads one document.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    Ok(serde_yaml::from_str(text)?)
}

/// Reads all documents of a text; empty ones are left out.
pub fn read_all<T: DeserializeOwned>(text: &str) -> Result<Vec<T>, YamlError> {
    let mut all = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let value = serde_yaml::Value::deserialize(document)?;
        if !value.is_null() {
            all.push(serde_yaml::from_value(value)?);
        }
    }
    Ok(all)
}

/// Writes one document.
pub fn write<T: Serialize>(value: &T) -> Result<String, YamlError> {
    Ok(serde_yaml::to_string(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_documents_are_left_out() {
        let all: Vec<u32> = read_all("---\n1\n---\n# nothing\n---\n2\n").unwrap();
        assert_eq!(all, [1, 2]);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = write(&vec!["a: b", "null", "1"]).unwrap();
        assert_eq!(read::<Vec<String>>(&text).unwrap(), ["a: b", "null", "1"]);
    }
}
