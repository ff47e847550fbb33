# Makes three namespaces in a row: netns.sh CLIENT ROUTER SERVER, and the four hardware addresses from left to right.
client=$1 router=$2 server=$3

for space; do
    case $space in *:*) break ;; esac
    ip netns add "$space"
done

# Addresses of IPv6 are there at once, without a search for duplicates: interfaces that are made later have it so.
for space in "$client" "$router" "$server"; do
    ip netns exec "$space" sh -euc '
        for kind in all default; do
            echo 0 > /proc/sys/net/ipv6/conf/$kind/disable_ipv6
            echo 0 > /proc/sys/net/ipv6/conf/$kind/accept_dad
            echo 0 > /proc/sys/net/ipv4/conf/$kind/rp_filter
        done'
    ip -n "$space" link set lo up
done

ip link add router netns "$client" address "$4" type veth peer name client netns "$router" address "$5"
ip link add server netns "$router" address "$6" type veth peer name router netns "$server" address "$7"

# A segment on the wire is a segment of the wire: what a firewall counts and a userspace router forwards is no bundle.
ip -n "$client" link set router gso_max_segs 1 up
ip -n "$router" link set client gso_max_segs 1 up
ip -n "$router" link set server gso_max_segs 1 up
ip -n "$server" link set router gso_max_segs 1 up

# One processor receives it all: of an acknowledgement and the reset behind it, sent by two, neither overtakes the other.
for space in "$client" "$router" "$server"; do
    ip netns exec "$space" sh -euc '
        for queue in /sys/class/net/*/queues/rx-0/rps_cpus; do
            if [ -w "$queue" ]; then echo 1 > "$queue"; fi
        done'
done

ip -n "$client" -batch - << END
address add 10.1.0.2/24 dev router
address add 2001:db8:1::2/64 dev router nodad
route add default via 10.1.0.1
route add default via 2001:db8:1::1
END
ip -n "$router" -batch - << END
address add 10.1.0.1/24 dev client
address add 10.2.0.1/24 dev server
address add 2001:db8:1::1/64 dev client nodad
address add 2001:db8:2::1/64 dev server nodad
route add 10.3.0.0/16 via 10.2.0.2
route add 2001:db8:3::/64 via 2001:db8:2::2
END
ip -n "$server" -batch - << END
address add 10.2.0.2/24 dev router
address add 2001:db8:2::2/64 dev router nodad
route add local 10.3.0.0/16 dev lo
route add local 2001:db8:3::/64 dev lo
route add default via 10.2.0.1
route add default via 2001:db8:2::1
END

# ICMP errors at once and all of them; who binds an address of IPv6 need not have it.
ip netns exec "$router" sh -euc '
    echo 1 > /proc/sys/net/ipv4/ip_forward
    echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
    echo 0 > /proc/sys/net/ipv4/icmp_ratelimit
    echo 0 > /proc/sys/net/ipv6/icmp/ratelimit'
ip netns exec "$server" sh -euc 'echo 1 > /proc/sys/net/ipv6/ip_nonlocal_bind'
