# Sourced by scripts/down and by the tests: removes the packet filter's rules of one installation, and no others.
# shellcheck shell=bash

# remove_rules CLUSTER: with whatever program set them; none being there is no error.
remove_rules() {
  local tag=$1 program chain jump
  [[ $tag =~ ^[0-9a-zA-Z]{1,12}$ ]] || return 0
  for program in iptables ip6tables; do
    command -v "$program" >/dev/null 2>&1 || continue
    for jump in "INPUT flex-$tag-in" "DOCKER-USER flex-$tag-fwd" "FORWARD flex-$tag-fwd"; do
      while "$program" -w 10 -D "${jump% *}" -j "${jump#* }" 2>/dev/null; do :; done
    done
    # Emptied first: a chain that is jumped to cannot go.
    for chain in in fwd host out; do "$program" -w 10 -F "flex-$tag-$chain" 2>/dev/null || true; done
    for chain in in fwd host out; do "$program" -w 10 -X "flex-$tag-$chain" 2>/dev/null || true; done
  done
  if command -v nft >/dev/null 2>&1; then nft delete table inet "flex_$tag" 2>/dev/null || true; fi
}
