"""UserService over the user store."""

from __future__ import annotations

from execution.ledger.v1 import user_service_pb2 as pb
from execution.ledger.v1 import user_service_pb2_grpc
from services.common.rpc import Context
from services.ledger.domain import fields
from services.ledger.domain.users import NewUser, User
from services.ledger.servicer import convert
from services.ledger.store.users import UserStore

DISPLAY_NAME_CHARACTERS_MAX = 100


class UserServicer(user_service_pb2_grpc.UserServiceServicer):
    """See the contract."""

    def __init__(self, users: UserStore) -> None:
        self._users = users

    async def CreateUser(self, request: pb.CreateUserRequest, context: Context) -> pb.CreateUserResponse:
        """See the contract."""
        key = convert.key_of(request, fields.request_id_of(request.request_id))
        user = await self._users.create(key, new_user_from_pb(request))
        return pb.CreateUserResponse(user=user_to_pb(user))

    async def GetUser(self, request: pb.GetUserRequest, context: Context) -> pb.GetUserResponse:
        """See the contract."""
        user = await self._users.get(fields.uuid_of(request.user_id, "user_id"))
        return pb.GetUserResponse(user=user_to_pb(user))

    async def ListUsers(self, request: pb.ListUsersRequest, context: Context) -> pb.ListUsersResponse:
        """See the contract."""
        page = await self._users.page(convert.page_of(request))
        return pb.ListUsersResponse(users=map(user_to_pb, page.items), next_page_token=page.next_token)


def new_user_from_pb(request: pb.CreateUserRequest) -> NewUser:
    """The user to make.

    Raises:
        InvalidInputError: a field is wrong.
    """
    return NewUser(
        fields.email_of(request.email),
        fields.text_of(request.display_name, "display_name", characters_max=DISPLAY_NAME_CHARACTERS_MAX),
    )


def user_to_pb(user: User) -> pb.User:
    """The user as message."""
    return pb.User(
        user_id=str(user.user_id),
        email=user.email,
        display_name=user.display_name,
        trust_score=user.trust_score,
        trust_version=user.trust_version,
        created_at=convert.timestamp_to_pb(user.created_at),
    )
