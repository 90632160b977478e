"""One stream as both ends see it: its phase, its credit and what is under way on it.

``docs/protocol.md``, sections "States", "Credit" and "Batches".
"""

from __future__ import annotations

from ..errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from ..options import Limits
from .control import Error
from .credit import Credit
from .message import Message
from .session import Abort, Blob, Commit, Data, Finish, Opened, Weights
from .session import Credit as CreditMessage
from .state import STREAM, Role, StreamPhase
from .transfer import BatchTransfer, FileTransfer, TransferError

__all__ = ["Stream"]

CHARGED = (Blob, Data, Commit)


class Stream:
    """State of one stream number.

    Args:
        number: the stream's number.
        role: which end we are.
        limits: bounds of batches and blobs.
        compression: whether tensors may be compressed.

    Attributes:
        phase: what the stream is used for.
        credit: how far the device may go.
        batch: the batch under way.

    """

    def __init__(self, number: int, role: Role, limits: Limits, compression: bool = False) -> None:
        self.number = number
        self.role = role
        self._peer = role.peer
        self.limits = limits
        self.compression = compression
        self._reset(StreamPhase.IDLE)

    def _reset(self, phase: StreamPhase) -> None:
        self.phase = phase
        self.credit = Credit()
        self.batch = BatchTransfer(self.limits.batch, self.compression)
        # One each: a blob goes up while weights come down.
        self._blob = FileTransfer(self.limits.blob)
        self._weights = FileTransfer(self.limits.blob)

    def has_credit(self, message: Message, size: int) -> bool:
        """Tell whether a charged message of ``size`` bytes on the wire may be sent now."""
        return self.credit.allows(size, message.seq)

    def sent(self, message: Message, size: int) -> None:
        """Check and note a message that we are about to send.

        Raises:
            LocalProtocolError: it is not legal now; nothing has changed.

        """
        phase = self._move(self.role, message)
        if phase is None:
            raise LocalProtocolError(
                ErrorCode.PROTOCOL, f"{message.type.name} on a stream that is {self.phase.value}"
            )
        if isinstance(message, CHARGED) and not self.has_credit(message, size):
            raise LocalProtocolError(
                ErrorCode.FLOW_CONTROL,
                f"{message.type.name} of {size} bytes for batch {message.seq}; "
                f"credit is {self.credit.available} bytes up to batch {self.credit.last}",
            )
        try:
            self._transfer(message)
        except TransferError as exc:
            raise LocalProtocolError(exc.code, str(exc)) from None
        self._apply(message, phase, size)

    def received(self, message: Message, size: int) -> bool:
        """Check and note a message that has come; tell whether it is to be acted on.

        Raises:
            RemoteProtocolError: it is not legal now.

        """
        phase = self._move(self._peer, message)
        if phase is None:
            raise RemoteProtocolError(
                ErrorCode.PROTOCOL, f"{message.type.name} on a stream that is {self.phase.value}"
            )
        if isinstance(message, CHARGED) and not self.has_credit(message, size):
            raise RemoteProtocolError(
                ErrorCode.FLOW_CONTROL,
                f"{message.type.name} of {size} bytes for batch {message.seq} exceeds the credit",
            )
        ignored = self.phase in (StreamPhase.FAILED, StreamPhase.DETACHING) and phase is self.phase
        if not ignored:
            try:
                self._transfer(message)
            except TransferError as exc:
                raise RemoteProtocolError(exc.code, str(exc)) from None
        self._apply(message, phase, size)
        return not ignored

    def _move(self, sender: Role, message: Message) -> StreamPhase | None:
        if isinstance(message, Error) and message.seq and self.phase is not StreamPhase.OPENING:
            # The error of one batch: only the server reports it, and the stream goes on.
            known = (sender, message.type) in STREAM[self.phase]
            return self.phase if known else None
        return STREAM[self.phase].get((sender, message.type))

    def _transfer(self, message: Message) -> None:
        if isinstance(message, Data):
            self.batch.data(message)
        elif isinstance(message, Commit):
            self.batch.commit(message)
        elif isinstance(message, Abort):
            self.batch.abort(message)
        elif isinstance(message, Finish):
            self.batch.finish()
        elif isinstance(message, Blob):
            self._blob.part(message)
        elif isinstance(message, Weights):
            self._weights.part(message)

    def _apply(self, message: Message, phase: StreamPhase, size: int) -> None:
        if isinstance(message, CHARGED):
            self.credit.charge(size)
        elif isinstance(message, CreditMessage):
            self.credit.grant(message.offset, message.last)
        if phase is StreamPhase.ATTACHED and self.phase is StreamPhase.OPENING:
            self._reset(phase)
            if isinstance(message, Opened) and message.finished:
                phase = StreamPhase.FINISHING
        self.phase = phase
