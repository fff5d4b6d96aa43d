import { Argument, type Command, type Option } from "commander";

const SHELLS = { bash, zsh, fish } as const;
type Shell = keyof typeof SHELLS;

/** What a shell completes of one command. */
interface Completed {
  name: string;
  description: string;
  options: readonly Option[];
}

/** `vit-msn completion`: a shell's completion script, made from the options that the commands declare. */
export function add_completion(program: Command): void {
  program
    .command("completion")
    .description("print a script that completes commands and options in a shell")
    .addArgument(new Argument("<shell>", "the shell").choices(Object.keys(SHELLS)))
    .addHelpText(
      "after",
      `
Examples:
  vit-msn completion bash >> ~/.bash_completion
  vit-msn completion zsh > "\${fpath[1]}/_vit-msn"
  vit-msn completion fish > ~/.config/fish/completions/vit-msn.fish`,
    )
    .action((shell: Shell) => {
      process.stdout.write(SHELLS[shell](program.commands.map(completed)));
    });
}

function completed(command: Command): Completed {
  const options = command.createHelp().visibleOptions(command);
  return { name: command.name(), description: command.description(), options };
}

/** An option with a value is followed by one of its choices, or by a file. */
function takes_value({ required, optional }: Option): boolean {
  return required || optional;
}

function flags_of({ short, long }: Option): string[] {
  return [long, short].filter((flag) => flag !== undefined && flag !== null);
}

function names_of(commands: readonly Completed[]): string {
  return commands.map(({ name }) => name).join(" ");
}

function bash(commands: readonly Completed[]): string {
  const values = commands.flatMap(({ name, options }) =>
    options
      .filter(({ argChoices }) => argChoices)
      .map((option) => {
        const patterns = flags_of(option).map((flag) => `"${name} ${flag}"`);
        return `    ${patterns.join(" | ")}) words="${option.argChoices?.join(" ")}" ;;`;
      }),
  );
  const files = commands.flatMap(({ name, options }) =>
    options
      .filter((option) => takes_value(option) && !option.argChoices)
      .flatMap((option) => flags_of(option).map((flag) => `"${name} ${flag}"`)),
  );
  const options = commands.map(({ name, options }) => {
    return `      ${name}) words="${options.map(({ long, short }) => long ?? short).join(" ")}" ;;`;
  });
  return `_vit_msn() {
  local cur=\${COMP_WORDS[COMP_CWORD]} command=\${COMP_WORDS[1]} words=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "${names_of(commands)} help --help --version" -- "$cur"))
    return
  fi
  case "$command \${COMP_WORDS[COMP_CWORD - 1]}" in
${values.join("\n")}
    ${files.join(" | ")}) return ;;
    "completion completion") words="${Object.keys(SHELLS).join(" ")}" ;;
    "help help") words="${names_of(commands)}" ;;
  esac
  if [ -z "$words" ] && [ "\${cur#-}" != "$cur" ]; then
    case "$command" in
${options.join("\n")}
    esac
  fi
  [ -z "$words" ] || COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o default -F _vit_msn vit-msn
`;
}

function zsh(commands: readonly Completed[]): string {
  const quote = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;
  const describe = (text: string) => text.replace(/[\\[\]:]/g, "\\$&");
  const argument_of = (option: Option) => {
    const action = option.argChoices ? `(${option.argChoices.join(" ")})` : "_files";
    return takes_value(option) ? `:value:${action}` : "";
  };
  const spec = (option: Option) =>
    flags_of(option).map((flag) => quote(`*${flag}[${describe(option.description)}]${argument_of(option)}`));
  const cases = commands.map(({ name, options }) => {
    const rest = name === "completion" ? `'*:shell:(${Object.keys(SHELLS).join(" ")})'` : "'*:file:_files'";
    return `    ${name}) _arguments ${[...options.flatMap(spec), rest].join(" \\\n      ")} ;;`;
  });
  const names = commands.map(({ name, description }) => `    ${quote(`${name}:${describe(description)}`)}`);
  return `#compdef vit-msn
_vit_msn() {
  local -a commands=(
${names.join("\n")}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  local command=$words[2]
  shift words
  (( CURRENT-- ))
  case $command in
${cases.join("\n")}
    help) _describe command commands ;;
  esac
}
compdef _vit_msn vit-msn
`;
}

function fish(commands: readonly Completed[]): string {
  const quote = (text: string) => `'${text.replace(/[\\']/g, "\\$&")}'`;
  const lines = commands.flatMap(({ name, description, options }) => {
    const within = `complete -c vit-msn -n '__fish_seen_subcommand_from ${name}'`;
    return [
      `complete -c vit-msn -f -n __fish_use_subcommand -a ${name} -d ${quote(description)}`,
      ...options.map((option) => {
        const long = option.long ? ` -l ${option.long.slice(2)}` : "";
        const short = option.short ? ` -s ${option.short.slice(1)}` : "";
        const choices = option.argChoices ? ` -f -a ${quote(option.argChoices.join(" "))}` : "";
        const value = takes_value(option) ? ` -r${choices}` : "";
        return `${within}${short}${long}${value} -d ${quote(option.description)}`;
      }),
    ];
  });
  const shells = `complete -c vit-msn -f -n '__fish_seen_subcommand_from completion' -a ${quote(Object.keys(SHELLS).join(" "))}`;
  return `${[...lines, shells].join("\n")}\n`;
}
