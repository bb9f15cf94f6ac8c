//! Making bencode: each method appends to the bytes of one message, nothing is sorted or copied twice.

/// Appends a dictionary, filled by `fill`.
pub fn write_dictionary(out: &mut Vec<u8>, fill: impl FnOnce(&mut DictionaryWriter<'_>)) {
    out.push(b'd');
    fill(&mut DictionaryWriter(out));
    out.push(b'e');
}

fn write_list(out: &mut Vec<u8>, fill: impl FnOnce(&mut ListWriter<'_>)) {
    out.push(b'l');
    fill(&mut ListWriter(out));
    out.push(b'e');
}

fn write_integer(out: &mut Vec<u8>, integer: i64) {
    out.push(b'i');
    out.extend_from_slice(integer.to_string().as_bytes());
    out.push(b'e');
}

fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes.len().to_string().as_bytes());
    out.push(b':');
    out.extend_from_slice(bytes);
}

/// A dictionary that is being written.
#[derive(Debug)]
pub struct DictionaryWriter<'a>(&'a mut Vec<u8>);

impl DictionaryWriter<'_> {
    /// Adds an integer.
    pub fn integer(&mut self, key: &str, integer: i64) -> &mut Self {
        write_bytes(self.0, key.as_bytes());
        write_integer(self.0, integer);
        self
    }

    /// Adds a byte string.
    pub fn bytes(&mut self, key: &str, bytes: impl AsRef<[u8]>) -> &mut Self {
        write_bytes(self.0, key.as_bytes());
        write_bytes(self.0, bytes.as_ref());
        self
    }

    /// Adds a list, filled by `fill`.
    pub fn list(&mut self, key: &str, fill: impl FnOnce(&mut ListWriter<'_>)) -> &mut Self {
        write_bytes(self.0, key.as_bytes());
        write_list(self.0, fill);
        self
    }

    /// Adds a dictionary, filled by `fill`.
    pub fn dictionary(
        &mut self,
        key: &str,
        fill: impl FnOnce(&mut DictionaryWriter<'_>),
    ) -> &mut Self {
        write_bytes(self.0, key.as_bytes());
        write_dictionary(self.0, fill);
        self
    }
}

/// A list that is being written.
#[derive(Debug)]
pub struct ListWriter<'a>(&'a mut Vec<u8>);

impl ListWriter<'_> {
    /// Adds an integer.
    pub fn integer(&mut self, integer: i64) -> &mut Self {
        write_integer(self.0, integer);
        self
    }

    /// Adds a byte string.
    pub fn bytes(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        write_bytes(self.0, bytes.as_ref());
        self
    }

    /// Adds a list, filled by `fill`.
    pub fn list(&mut self, fill: impl FnOnce(&mut ListWriter<'_>)) -> &mut Self {
        write_list(self.0, fill);
        self
    }

    /// Adds a dictionary, filled by `fill`.
    pub fn dictionary(&mut self, fill: impl FnOnce(&mut DictionaryWriter<'_>)) -> &mut Self {
        write_dictionary(self.0, fill);
        self
    }
}
