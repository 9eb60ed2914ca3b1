-- phase: before
-- Roles and the schema's owner. Roles belong to the whole server, and two databases may be migrated at once, so each is
-- made unless it is there. None can log in: the deployment grants them to its own login roles.

do $$
declare
    role_name text;
begin
    foreach role_name in array array['ledger_owner', 'ledger_service', 'analyst_readonly'] loop
        begin
            execute format('create role %I nologin', role_name);
        exception when duplicate_object or unique_violation then
            null;
        end;
    end loop;
    if not pg_has_role(current_user, 'ledger_owner', 'member') then
        execute format('grant ledger_owner to %I', current_user);
    end if;
end
$$;

alter schema ledger owner to ledger_owner;
grant usage on schema ledger to ledger_service, analyst_readonly;
