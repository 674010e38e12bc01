# The documentation says what is so: README.md's configurations load, its commands give the
# replies shown, its tables are complete, and no link leads nowhere.
#
# How README.md is run:
# - Each ```nginx block passes "nginx -t" without a warning: inside http{}, with a registry
#   "main" before it when it declares none.
# - One that listens on 8080 is started as a node of its own. The ```console blocks after it
#   are run against that node, in their order, a line that begins with "$" as a command of
#   bash in the top directory. What follows is the output to the letter, save times, the
#   digits of seconds in tables, and the width of columns.
# - 8080 stands for the node's port, 9001 and 9002 for those of two real servers, 9003 for
#   one where nobody listens, 6379 for that of a Redis which is the test's own. $TOKEN is the
#   token in the file that the configuration names.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $TOP = "$FindBin::Bin/..";
my $TOKEN = 'token-of-the-test';
my $readme = slurp("$TOP/README.md");

# [language, text, line] of each fenced block. One inside a list is indented.
my @blocks;
while ($readme =~ /^([ ]*)```(\w*)\n(.*?)^\1```$/msg) {
    my ($indent, $language, $text, $start) = ($1, $2, $3, $-[0]);
    $text =~ s/^$indent//mg;
    push @blocks, [ $language, $text, 1 + (substr($readme, 0, $start) =~ tr/\n//) ];
}

# Configurations

# Files that examples name, beside nginx.conf.
sub write_files {
    my ($node) = @_;
    my $dir = $node->dir . '/conf';
    spew("$dir/registry.token", "$TOKEN\n");
    spew("$dir/registry.htpasswd", "admin:{PLAIN}secret\n");
    system("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=registry "
        . "-keyout $dir/registry.key -out $dir/registry.crt 2>/dev/null") == 0 or die "openssl failed\n";
    return $node;
}

my %ports = (9001 => RegistryTest->backend(name => 'a')->port,
    9002 => RegistryTest->backend(name => 'b')->port, 9003 => free_port());
my $redis = RegistryTest->redis;
$ports{6379} = $redis->port;

sub on_free_ports {
    my ($node, $text) = @_;
    my %port = (%ports, map { $_ => $node->port($_) } 8080, 8081, 8443);
    $text =~ s/\blisten(\s+)(\d{4})\b/listen${1}127.0.0.1:$port{$2}/g;
    $text =~ s/\b(8080|900[1-3]|6379)\b/$port{$1}/g;
    return $text;
}

# And back, in what a command has said.
sub as_in_readme {
    my ($node, $text) = @_;
    my %port = (%ports, 8080 => $node->port(8080));
    $text =~ s/\b$port{$_}\b/$_/g for sort keys %port;
    return $text;
}

my $try = write_files(RegistryTest->nginx(start => 0));

sub test_conf {
    my ($http) = @_;
    my $modules = join '', map { "load_module $_;\n" } split ' ', $ENV{TEST_NGINX_LOAD_MODULES};
    return $try->test_conf("$modules pid %%DIR%%/nginx.pid; error_log stderr;\nevents { }\nhttp {\n"
        . $try->_temp_paths . "$http\n}\n");
}

my @configurations = grep { $_->[0] eq 'nginx' && $_->[1] !~ /^load_module/ } @blocks;
ok(@configurations >= 5, 'README.md has configurations');
for my $block (@configurations) {
    my ($http, $line) = @$block[1, 2];
    $http = "registry main 1m { allow_servers 127.0.0.1; }\n$http" if $http !~ /^registry /m;
    my ($exit, $output) = test_conf(on_free_ports($try, $http));
    ok($exit == 0 && $output !~ /\[(?:warn|emerg)\]/, "README.md:$line: the configuration loads") or diag($output);
}
my ($load) = map { $_->[1] =~ /^load_module modules\/(\S+);$/ ? $1 : () } @blocks;
is("$load", 'ngx_http_upstream_registry_module.so', 'the module is loaded by its name');

# Commands and their replies

sub normal {
    my ($text) = @_;
    my $times = 'last_heartbeat|time_since_heartbeat|created_at|updated_at|disabled_at|timestamp|heartbeat_time|last_sync|lag_ms';
    $text =~ s/"($times)":(\s*)\d+(?:\.\d{1,3})?(?![\d.])/"$1":$2*/g;
    $text =~ s/^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d /TIME /mg;
    $text =~ s/ \d+(?:\.\d)?s(?= |$)/ *s/mg;
    $text =~ s/ +/ /g;
    return $text;
}

my ($node, $exports);
my $curl_home = temp_dir();
spew("$curl_home/.curlrc", "silent\nshow-error\nmax-time = 10\n");

sub run {
    my ($command) = @_;
    my ($out, $err) = map { temp_dir() . "/$_" } qw(out err);
    my $pid = RegistryTest::Process::spawn(
        [ 'bash', '-c', "cd '$TOP'; $exports\n$command" ], stdout => $out, stderr => $err,
        env => { CURL_HOME => $curl_home, TOKEN => $TOKEN });
    wait_until(sub { !alive($pid) }, 15 * time_scale()) or diag("it does not end: $command");
    return (slurp($out), slurp($err));
}

my $commands = 0;
for my $block (@blocks) {
    my ($language, $text, $line) = @$block;
    if ($language eq 'nginx' && $text =~ /listen +8080;/) {
        $node->quit if $node;
        $node = write_files(RegistryTest->nginx(start => 0, workers => 1, server => undef));
        $node->set_conf(http => on_free_ports($node, $text))->start;
        wait_until(sub { $redis->cli(EXISTS => 'upstream:sync:nodes') }) if $text =~ /^ *redis /m;
        $exports = '';
    }
    next unless $language eq 'console';
    my @pairs = split /^\$ /m, $text;
    is(shift @pairs, '', "README.md:$line: begins with a command");
    for my $pair (@pairs) {
        my ($command, $expected) = split /\n/, $pair, 2;
        if ($command =~ /^export /) {
            $exports .= on_free_ports($node, $command) . "\n";
            next;
        }
        my ($out, $err) = run(on_free_ports($node, $command));
        is(normal(as_in_readme($node, $out)), normal($expected), "\$ $command") or diag("README.md:$line\n$err");
        $commands++;
    }
}
ok($commands >= 40, "README.md shows $commands commands");
$node->log_is_clean;

# Tables and headings

my %heading = map { lc $_ => 1 } $readme =~ /^#+ (.+)$/mg;
my ($section) = $readme =~ /^## Directives\n(.*?)^## /ms;

# The names of what can be written in the block, as the module lists them.
my ($names) = (test_conf('registry x 1m { nonsense on; }'))[1] =~ /there are ([\w, ]+) in /;
my @directives = split /, /, $names;
for my $name (@directives) {
    my ($text) = $section =~ /^### $name\n(.*?)(?=^### |\z)/ms;
    ok($text, "the directive $name has a section") or next;
    like($text, qr/^\| Syntax: \| \*\*$name\*\*.*;.*\n\|---\|---\|\n\| Default: \| .*\n\| Context: \| `registry` \|$/m,
        "$name: syntax, default, context");
    my ($default) = $text =~ /^\| Default: \| `([^`]+;)` \|$/m or next;
    my $with = $name =~ /^redis_/ ? 'redis redis://127.0.0.1;' : '';
    is((test_conf("registry x 1m { $with $default }"))[0], 0, "$name: the default can be written");
}
for my $name ('registry (zone)', 'registry (upstream)', 'registry_balance', 'registry_keepalive', 'registry_api') {
    ok($heading{$name}, "the directive $name has a section");
}
my ($methods) = (test_conf('registry x 1m { } upstream x { registry x; registry_balance none; }'))[1]
    =~ /it may be ([\w, ]+) in/;
like($section, qr/\*\*registry_balance\*\* .*`$_`/, "the method $_ is in its syntax") for split /, | or /, $methods;

my $reply = http('GET', $node->url('/upstream/nonsense', '8080'), headers => { 'X-API-Token' => $TOKEN });
my ($endpoints) = $reply->{json}{message} =~ /there are (.*)/;
for my $name (split /, /, $endpoints) {
    ok($heading{$name}, "the endpoint $name has a section");
    like($readme, qr/^\| \[`$name`\]\(#$name\) \| /m, 'and a line in the table');
}

my $status = http('GET', $node->url('/upstream/status?ns=backend', '8080'), headers => { 'X-API-Token' => $TOKEN })->{json};
my %tables = ('status' => [ 'field', $status->{data}[0] ], 'the sync of status' => [ 'field of `sync`', $status->{sync} ]);
for my $what (sort keys %tables) {
    my ($title, $has) = @{ $tables{$what} };
    my ($fields) = $readme =~ /^### status\n.*?(^\| \Q$title\E \|.*?)^$/ms;
    my @described = map { /^\| (`[^|]*) \|/ ? $1 =~ /`(\w+)`/g : () } split /\n/, $fields;
    is_deeply([ sort @described ], [ sort keys %$has ], "every field of $what is described");
}

# How many servers fit

my ($sizes) = $readme =~ /^(\| size \| servers \|.*?)^$/ms;
my %fit = $sizes =~ /^\| `(\w+)` \| (\d+) \|/mg;
my ($bytes) = $readme =~ /^That is (\d+) bytes a server in 16m/m;
is($bytes, int(16 * 2**20 / $fit{'16m'}), 'the bytes that a server takes follow from the table');
my $zones = RegistryTest->nginx(
    workers => 1,
    http => join('', map { "registry z$_ $_ { } upstream z$_ { registry z$_; }\n" } sort keys %fit),
    server => join('', map { "location /$_/ { registry_api z$_; }\n" } sort keys %fit));
# The larger ones take seconds.
for my $size ('128k', '1m') {
    my $client = $zones->client;
    my ($count, $added) = (0);
    while (1) {
        my $host = join '.', 10, 0, $count >> 8, $count & 255;
        $added = $client->post("/$size/add", body => "host=$host&port=80");
        last if $added->{status} != 200;
        $count++;
    }
    is("$count, $added->{status}", "$fit{$size}, 507", "$size holds as many servers as README.md says");
}
is(scalar($zones->grep_log(qr/\[error\].*registry "z\w+": 507: The zone is full: /)), 2, 'the line about a full zone');
$zones->log_is_clean;

# Links

# As GitHub makes them.
sub anchor {
    my ($text) = @_;
    ($text = lc $text) =~ s/[^\w\- ]//g;
    $text =~ s/ /-/g;
    return $text;
}

for my $file (map { substr $_, length "$TOP/" } glob("$TOP/*.md $TOP/docs/*.md")) {
    (my $text = slurp("$TOP/$file")) =~ s/^ *```.*?^ *```$//msg;
    my %anchors = map { anchor($_) => 1 } $text =~ /^#+ (.+)$/mg;
    my ($dir) = $file =~ m{^(.*/)};
    my @broken;
    for my $link ($text =~ /\]\(([^)]+)\)/g) {
        next if $link =~ /^https?:/;
        my ($path, $fragment) = $link =~ /^([^#]*)(?:#(.*))?$/;
        my $target = "$TOP/" . ($dir || '') . $path;
        push @broken, $link if length $path ? !-e $target : !$anchors{$fragment};
    }
    is("@broken", '', "$file: all links lead somewhere");
}

done_testing;
