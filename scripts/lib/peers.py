"""Goes through the life of a droplet with DigitalOcean's own client. Whatever does not fit the description is a 500 of the
proxy that it goes through, and ends this with an error."""

import sys
import time

from pydo import Client

client = Client("simulated", endpoint=sys.argv[1], retry_total=0)
# The client sends a token over plain HTTP only if every call says so.
plain = {"enforce_https": False}
seen = 0


def check(what, so):
    global seen
    seen += 1
    if not so:
        sys.exit(f"pydo: {what} is not so")


def until(what, look):
    for _ in range(200):
        found = look()
        if found:
            return found
        time.sleep(0.05)
    sys.exit(f"pydo: {what} never came")


account = client.account.get(**plain)
check("the account is active", account["account"]["status"] == "active")
sizes = client.sizes.list(per_page=2, **plain)
check("lists have pages", len(sizes["sizes"]) == 2 and "next" in sizes["links"]["pages"])
regions = client.regions.list(**plain)
check("there are regions", regions["meta"]["total"] == 3)

order = {
    "name": "seedbox-peer",
    "region": "fra1",
    "size": "s-1vcpu-1gb",
    "image": "debian-12-x64",
    "tags": ["seedplane:peers", "seedbox:peer"],
    "user_data": "#cloud-config\n",
    "ipv6": False,
    "monitoring": False,
}
made = client.droplets.create(body=order, **plain)
droplet = made["droplet"]["id"]
check("a new droplet is new and has no address", made["droplet"]["status"] == "new" and made["droplet"]["networks"]["v4"] == [])
active = until("an active droplet", lambda: (lambda one: one if one.get("droplet", {}).get("status") == "active" and one["droplet"]["networks"]["v4"] else None)(client.droplets.get(droplet, **plain)))
check("it has a public address", any(net["type"] == "public" for net in active["droplet"]["networks"]["v4"]))
named = until("it by its name", lambda: client.droplets.list(name="SEEDBOX-PEER", **plain)["droplets"])
check("names are looked up in any case", named[0]["id"] == droplet)
tagged = until("it by its tag", lambda: client.droplets.list(tag_name="seedplane:peers", **plain)["droplets"])
check("tags are looked up", tagged[0]["id"] == droplet)


def act(body):
    action = client.droplet_actions.post(droplet, body=body, **plain)["action"]
    check(f"{body['type']} is under way", action["status"] in ("in-progress", "completed"))
    return until(f"the end of {body['type']}", lambda: client.actions.get(action["id"], **plain).get("action", {}).get("status") == "completed")


act({"type": "power_off"})
check("it is off", client.droplets.get(droplet, **plain)["droplet"]["status"] == "off")
act({"type": "resize", "size": "s-2vcpu-2gb", "disk": False})
check("it has the new size", client.droplets.get(droplet, **plain)["droplet"]["size_slug"] == "s-2vcpu-2gb")
act({"type": "power_on"})

client.tags.create(body={"name": "seedplane-suspended"}, **plain)
resources = {"resources": [{"resource_id": str(droplet), "resource_type": "droplet"}]}
client.tags.assign_resources("seedplane-suspended", body=resources, **plain)
check("it has the tag", "seedplane-suspended" in client.droplets.get(droplet, **plain)["droplet"]["tags"])
client.tags.unassign_resources("seedplane-suspended", body=resources, **plain)

beside = client.droplets.list_associated_resources(droplet, **plain)
check("nothing is beside it", beside["volumes"] == [] and beside["snapshots"] == [])
client.droplets.destroy_with_associated_resources_selective(droplet, body={"volumes": [], "snapshots": []}, **plain)
until("its end", lambda: client.droplets.get(droplet, **plain).get("id") == "not_found")
status = client.droplets.get_destroy_associated_resources_status(droplet, **plain)
check("its end has a time", "completed_at" in status)
print(f"pydo: {seen} things are so")
