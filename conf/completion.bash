# SPDX-License-Identifier: GPL-3.0-or-later
# Completion for bash: the commands and options of prometheus-qubes-proxy, and after `scrape` the names of the qubes.
# tests/test_manual.py compares it with the program.

_prometheus_qubes_proxy() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command= one
    # bash splits --log.level=warn into three words.
    if [ "$word" = = ]; then word=; elif [ "$before" = = ]; then before=${COMP_WORDS[COMP_CWORD - 2]}; fi
    for one in "${COMP_WORDS[@]:1:COMP_CWORD - 1}"; do
        case $one in
            serve | check | scrape | doctor | policy | hash-password) command=$one; break ;;
        esac
    done
    case $before in
        --config.file | --web.config.file) mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
        --log.level) mapfile -t COMPREPLY < <(compgen -W "debug info warn error" -- "$word"); return ;;
        --log.format) mapfile -t COMPREPLY < <(compgen -W "logfmt json" -- "$word"); return ;;
    esac
    local words="--config.file= --log.level= --log.format="
    case $command in
        "") words="serve check scrape doctor policy hash-password --help --version $words" ;;
        scrape) words="--json $words $(prometheus-qubes-proxy check 2>/dev/null | sed -n 's/^  \([^ ]*\)  .*/\1/p')" ;;
        check) words="--web.config.file= $words" ;;
        doctor) words="--json --web.config.file= $words" ;;
    esac
    case $command in
        "" | serve) words="--web.listen-address= --web.systemd-socket --web.config.file= $words" ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
    # After an option's = comes its value, not a blank.
    case ${COMPREPLY[0]-} in *=) compopt -o nospace 2>/dev/null ;; esac
}
complete -F _prometheus_qubes_proxy prometheus-qubes-proxy
