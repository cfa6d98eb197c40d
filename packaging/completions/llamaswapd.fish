# fish completion for llamaswapd

set -l verbs check doctor schema units private
set -l plain "not __fish_seen_subcommand_from $verbs"
set -l files '__fish_seen_subcommand_from check doctor units; or not __fish_seen_subcommand_from schema private'
set -l managed '__fish_seen_subcommand_from doctor units; or not __fish_seen_subcommand_from check schema private'
set -l named '__fish_seen_subcommand_from units private; or not __fish_seen_subcommand_from check doctor schema'

complete -c llamaswapd -f
complete -c llamaswapd -n "__fish_is_first_arg" -a check -d 'Say what is wrong with configuration files'
complete -c llamaswapd -n "__fish_is_first_arg" -a doctor -d 'Look for what keeps models from running'
complete -c llamaswapd -n "__fish_is_first_arg" -a schema -d 'Print the JSON schema of configuration files'
complete -c llamaswapd -n "__fish_is_first_arg" -a units -d 'Print the unit that each model gets'
complete -c llamaswapd -n "__fish_is_first_arg" -a private -d 'Run a command in the private manager of a daemon'

complete -c llamaswapd -n "$files" -o config -rF -d 'Configuration file'
complete -c llamaswapd -n "$files" -o config-dir -xa '(__fish_complete_directories)' -d 'Directory of further files'
complete -c llamaswapd -n "$managed" -o manager -xa 'auto system user private launcher' -d 'Which systemd runs the models'
complete -c llamaswapd -n "$named" -o instance -x -d 'Name of this daemon'
complete -c llamaswapd -n "$plain" -o listen -x -d 'HOST:PORT, or :PORT for all addresses'
complete -c llamaswapd -n "$plain" -o tls-cert-file -rF -d 'Certificate, PEM'
complete -c llamaswapd -n "$plain" -o tls-key-file -rF -d 'Key of the certificate, PEM'
complete -c llamaswapd -n "$plain" -o watch-config -d 'Reload when a configuration file changes'
complete -c llamaswapd -n "$plain" -o version -d 'Print the version'
complete -c llamaswapd -o help -d 'Print the flags'
complete -c llamaswapd -n '__fish_seen_subcommand_from check units' -o credentials -xa '(__fish_complete_directories)' -d 'Directory of a file for each credential'
complete -c llamaswapd -n '__fish_seen_subcommand_from check' -o strict -d 'Take unknown keys for problems'
complete -c llamaswapd -n '__fish_seen_subcommand_from doctor' -o json -d 'Print a list of objects'
complete -c llamaswapd -n '__fish_seen_subcommand_from check' -F
