"""The scripts that bash, zsh and fish load. They ask `nanochat-run completion SHELL WORD...` what may come next."""

from __future__ import annotations

BASH = """\
# bash completion for nanochat-run and nanochat-chat. In ~/.bashrc: source <(nanochat-run completion bash)
_nanochat() {
    local cur="${COMP_WORDS[COMP_CWORD]}" program="${COMP_WORDS[0]}" line name
    [ "$cur" != "=" ] || cur=""
    program="${program/#\\~/$HOME}"
    COMPREPLY=()
    while IFS= read -r line; do
        case "$line" in
            :folders|:files|:recipe-files)
                while IFS= read -r name; do
                    if [ -d "$name" ]; then
                        COMPREPLY+=("$(printf %q "$name")/")
                    elif [ "$line" = :files ] || { [ "$line" = :recipe-files ] && [[ $name == *.y*ml ]]; }; then
                        COMPREPLY+=("$(printf %q "$name") ")
                    fi
                done < <(compgen -f -- "$cur") ;;
            *[.=/]) COMPREPLY+=("$line") ;;
            *) COMPREPLY+=("$line ") ;;
        esac
    done < <("${program/%nanochat-chat/nanochat-run}" completion bash "${COMP_WORDS[@]:0:COMP_CWORD+1}" 2>/dev/null)
}
complete -o nospace -F _nanochat nanochat-run nanochat-chat
"""
ZSH = """\
#compdef nanochat-run nanochat-chat
# zsh completion. In ~/.zshrc, after compinit: source <(nanochat-run completion zsh)
_nanochat() {
    local program="${words[1]/#\\~/$HOME}" line
    program="${program/%nanochat-chat/nanochat-run}"
    local -a whole whole_shown begun begun_shown
    for line in "${(@f)$("$program" completion zsh "${(@)words[1,CURRENT]}" 2>/dev/null)}"; do
        case "$line" in
            '') ;;
            :folders) _path_files -/ ;;
            :files) _files ;;
            :recipe-files) _files -g '*.y(a|)ml' ;;
            *)
                local value="${line%%$'\\t'*}"
                local shown="$value"
                [[ "$line" != *$'\\t'* ]] || shown="${(r:24:)value} ${line#*$'\\t'}"
                if [[ "$value" == *[.=/] ]]; then
                    begun+=("$value") begun_shown+=("$shown")
                else
                    whole+=("$value") whole_shown+=("$shown")
                fi ;;
        esac
    done
    compadd -l -d whole_shown -a whole
    compadd -l -S '' -d begun_shown -a begun
}
if [ "$funcstack[1]" = _nanochat ]; then _nanochat "$@"; else compdef _nanochat nanochat-run nanochat-chat; fi
"""
FISH = """\
# fish completion. In ~/.config/fish/config.fish: nanochat-run completion fish | source
function __nanochat
    set -l words (commandline -opc) (commandline -ct)
    set -l program (string replace -r 'nanochat-chat$' nanochat-run -- $words[1])
    for line in ($program completion fish $words 2>/dev/null)
        switch $line
            case :folders
                __fish_complete_directories (commandline -ct)
            case :files
                __fish_complete_path (commandline -ct)
            case :recipe-files
                __fish_complete_suffix .yaml
            case '*'
                echo $line
        end
    end
end
complete -c nanochat-run -f -a '(__nanochat)'
complete -c nanochat-chat -f -a '(__nanochat)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
