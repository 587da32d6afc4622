// SPDX-License-Identifier: GPL-2.0

//! An administration virtqueue, the least that a driver can work with (VIRTIO 1.4, "Administration
//! Virtqueues" and "Device groups"): a driver can ask which commands there are, and there are none
//! besides.

use crate::memory::Memory;
use crate::request::ProcessError;
use crate::ring::cursor::Cursor;
use crate::ring::Buffer;

/// VIRTIO_ADMIN_CMD_LIST_QUERY
const LIST_QUERY: u16 = 0x0;
/// VIRTIO_ADMIN_CMD_LIST_USE
const LIST_USE: u16 = 0x1;
/// VIRTIO_ADMIN_CMD_CAP_ID_LIST_QUERY
const CAP_ID_LIST_QUERY: u16 = 0x7;
/// The commands there are, by their opcodes.
const SUPPORTED: u64 = 1 << LIST_QUERY | 1 << LIST_USE | 1 << CAP_ID_LIST_QUERY;

/// VIRTIO_ADMIN_STATUS_EINVAL
const EINVAL: u16 = 22;
/// VIRTIO_ADMIN_STATUS_Q_INVALID_COMMAND
const Q_INVALID_COMMAND: u16 = 1;
/// VIRTIO_ADMIN_STATUS_Q_INVALID_FIELD
const Q_INVALID_FIELD: u16 = 3;

/// Opcode, group type, 12 reserved bytes, member.
const HEADER: usize = 24;
/// Status, qualifier, 4 reserved bytes.
const STATUS: usize = 8;
/// Command specific data and result of the commands there are.
const DATA: usize = 8;

/// What a command answers: status, qualifier, result.
fn execute(command: &[u8]) -> (u16, u16, Option<u64>) {
    let Some((header, data)) = command.split_at_checked(HEADER) else {
        return (EINVAL, Q_INVALID_COMMAND, None);
    };
    match u16::from_le_bytes([header[0], header[1]]) {
        LIST_QUERY => (0, 0, Some(SUPPORTED)),
        LIST_USE => match data.first_chunk().copied().map(u64::from_le_bytes) {
            Some(used) if used & !SUPPORTED == 0 => (0, 0, None),
            _ => (EINVAL, Q_INVALID_FIELD, None),
        },
        CAP_ID_LIST_QUERY => (0, 0, Some(0)),
        _ => (EINVAL, Q_INVALID_COMMAND, None),
    }
}

/// Executes the command in a buffer; returns how many bytes were written.
pub fn process(buffer: &Buffer, mem: &Memory) -> Result<u32, ProcessError> {
    let mut command = [0; HEADER + DATA];
    let len = Cursor::new(&buffer.readable).read(mem, &mut command)?;
    let (status, qualifier, result) = execute(&command[..len]);
    let mut answer = vec![0; STATUS];
    answer[..2].copy_from_slice(&status.to_le_bytes());
    answer[2..4].copy_from_slice(&qualifier.to_le_bytes());
    if let Some(result) = result {
        answer.extend(result.to_le_bytes());
    }
    Ok(Cursor::new(&buffer.writable).write(mem, &answer)? as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::ring::testing::{memory, END};
    use crate::ring::Segment;

    fn command(opcode: u16, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[..2].copy_from_slice(&opcode.to_le_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn what_linux_asks() {
        assert_eq!(execute(&command(LIST_QUERY, &[])), (0, 0, Some(SUPPORTED)));
        assert_eq!(
            execute(&command(LIST_USE, &SUPPORTED.to_le_bytes())),
            (0, 0, None)
        );
        assert_eq!(execute(&command(CAP_ID_LIST_QUERY, &[])), (0, 0, Some(0)));
        assert_eq!(execute(&command(LIST_USE, &[0xff; 8])).0, EINVAL);
        assert_eq!(execute(&command(2, &[])).0, EINVAL);
        assert_eq!(execute(&[0; 3]).0, EINVAL);
    }

    #[test]
    fn over_memory() {
        let mem = memory();
        mem.write_slice(&command(LIST_QUERY, &[]), GuestAddress(0x100))
            .unwrap();
        let segment = |addr, len| Segment { addr, len };
        let buffer = Buffer {
            readable: [segment(0x100, HEADER as u32)].into_iter().collect(),
            writable: [segment(0x200, 8), segment(0x300, 8)].into_iter().collect(),
            ..Buffer::default()
        };
        assert_eq!(process(&buffer, &mem).unwrap(), 16);
        assert_eq!(mem.read_obj::<u64>(GuestAddress(0x200)).unwrap(), 0);
        assert_eq!(mem.read_obj::<u64>(GuestAddress(0x300)).unwrap(), SUPPORTED);
    }

    proptest! {
        #[test]
        fn any_buffer_is_survived(
            readable in proptest::collection::vec(
                (prop_oneof![0..END, any::<u64>()], any::<u32>()), 0..4),
            writable in proptest::collection::vec(
                (prop_oneof![0..END, any::<u64>()], any::<u32>()), 0..4),
        ) {
            let segments = |list: Vec<(u64, u32)>| {
                list.into_iter().map(|(addr, len)| Segment { addr, len }).collect()
            };
            let buffer = Buffer {
                readable: segments(readable),
                writable: segments(writable),
                ..Buffer::default()
            };
            let _ = process(&buffer, &memory());
        }
    }
}
